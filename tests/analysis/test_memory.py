"""Memory that is counted tensor by tensor."""

import torch
from torch import nn

from spatialflow.analysis.memory import SavedTensors, peak_mib

MIB_OF_FLOATS = 2**18


def test_the_peak_is_of_what_is_alive_at_once():
    def work():
        for _ in range(3):
            torch.zeros(MIB_OF_FLOATS)
        pair = [torch.zeros(MIB_OF_FLOATS), torch.zeros(2 * MIB_OF_FLOATS)]
        del pair
        torch.zeros(MIB_OF_FLOATS)

    assert round(peak_mib(work), 2) == 3


def test_saved_tensors_count_once_and_without_the_parameters():
    model = nn.Conv2d(1, 1, 1)
    image = torch.randn(1, 1, 512, 512, requires_grad=True)
    counted = SavedTensors(model)
    with counted.counting():
        squared = image * image
        output = model(squared)
    assert output.shape == image.shape
    # The image, and the square of it that the convolution reads.
    assert counted.mib == 2
