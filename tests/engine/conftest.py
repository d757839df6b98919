"""Small trainings for the tests of this folder."""

import pytest

GROUP_NORM = {
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
}


@pytest.fixture
def scenes_cfg(tiny_cfg, scenes):
    """Returns a function that gives a config for training on six scenes of 96 px."""

    def build(changes=None):
        return tiny_cfg(
            {
                "DATASETS.TRAIN": (scenes,),
                "DATASETS.TEST": (scenes,),
                "MODEL.RETINANET.NUM_CLASSES": 5,
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
                "SEED": 1,
                "SOLVER.OPTIMIZER": "AdamW",
                "SOLVER.BASE_LR": 0.001,
                "SOLVER.IMS_PER_BATCH": 2,
                "SOLVER.WARMUP_ITERS": 0,
                "SOLVER.MAX_ITER": 6,
                **(changes or {}),
            }
        )

    return build
