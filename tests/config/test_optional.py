"""Values that Detectron2 accepts and that are rare."""

import pytest
import torch

from spatialflow.config import get_cfg
from spatialflow.config.training_checks import check_training_config
from spatialflow.engine.optimizer import build_optimizer
from spatialflow.utils.errors import ConfigError


@pytest.mark.parametrize("key", ["SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS"])
def test_weight_decay_of_norms_and_biases_may_be_that_of_all(key, tiny_cfg, tmp_path):
    (tmp_path / "a.yaml").write_text(f"{key}: null\n".replace(".", ":\n  "))
    for cfg in (get_cfg(tmp_path / "a.yaml"), get_cfg(None, [key, "None"])):
        check_training_config(cfg, 1)
    cfg = tiny_cfg()
    cfg.defrost()
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.5, None
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    assert {g["weight_decay"] for g in build_optimizer(cfg, model).param_groups} == {0.5}


@pytest.mark.parametrize("key", ["SOLVER.BASE_LR", "MODEL.WEIGHTS", "SOLVER.STEPS"])
def test_none_is_refused_elsewhere(key):
    with pytest.raises(ConfigError, match=f"{key}: None given"):
        get_cfg(None, [key, "None"])


def test_sizes_of_augmented_tests_are_whole_numbers_from_1_on():
    keys = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES"]
    check_training_config(get_cfg(None, [*keys, [1, 32], "TEST.AUG.MAX_SIZE", 1]), 1)
    for sizes, most in (([0], 32), ([2.5], 32), ([], 32), ([32], 0)):
        with pytest.raises(ConfigError, match="TEST.AUG.M"):
            check_training_config(get_cfg(None, [*keys, sizes, "TEST.AUG.MAX_SIZE", most]), 1)
