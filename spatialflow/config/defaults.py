"""All keys that SpatialFlow adds to Detectron2's config, with their defaults."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_spatialflow_config(cfg: CfgNode) -> None:
    """Add SpatialFlow's keys, with their defaults, to a Detectron2 config."""
    own = cfg.MODEL.SPATIALFLOW = CfgNode()
    # Name of a file in configs/genotypes, or a path to a JSON file.
    own.GENOTYPE = "spatialflow"
    # Attention of the stuff head: "from_genotype", or in the place of the genotype's choices
    # "<site>=<option>", such as "merged=channel" or "levels=spatial,merged=criss_cross" (sites and
    # options: spatialflow/modeling/heads/attention.py).
    own.STUFF_ATTENTION = "from_genotype"
    # "resnet" (MODEL.RESNETS.*), "timm:<model>", "efficientnet_lite0" or "mobilenet_v2".
    own.TRUNK = "resnet"
    # Whether the last two start from their packages' weights when MODEL.WEIGHTS is empty.
    own.TRUNK_PRETRAINED = True
    # Levels of the mask branch. Boxes with sqrt(area) of CANONICAL_BOX_SIZE pixels are pooled from
    # CANONICAL_LEVEL, twice the size one level up.
    own.MASK_IN_FEATURES = ["p3", "p4", "p5"]
    own.MASK_CANONICAL_BOX_SIZE = 112
    own.MASK_CANONICAL_LEVEL = 4
    # Overlap at which a proposal learns the mask of a ground truth.
    own.MASK_PROPOSAL_IOU = 0.5
    # What the fusion takes for stuff: "labels" at the network's scale, resized by nearest
    # neighbour (the reference), or the argmax of bilinear "logits" at the original size.
    own.STUFF_FROM = "labels"
    # Denominators of the losses: "per_process" (the reference) or "global".
    own.LOSS_NORMALIZER = "per_process"
    # Detections whose box is still empty to at least THRESH after fusion take the empty pixels.
    own.BOX_FILL = CfgNode({"ENABLED": False, "THRESH": 0.5})
    # Convolutions keep their weights in oneDNN's layout at inference on x86 CPUs.
    own.PACK_CONVOLUTIONS = False

    # One folder in COCO panoptic layout (images/, panoptic/, panoptic.json), registered as
    # "folder_train" and "folder_val" (a split by hash of the image names) and "folder_all".
    folder = cfg.DATASETS.FOLDER = CfgNode()
    folder.PATH = ""
    # "" or "supercategories": merge classes by the JSON's supercategory field.
    folder.REMAP = ""
    folder.VAL_FRACTION = 0.2
    folder.SPLIT_SEED = 0
    # Use the first images only; 0 for all.
    folder.LIMIT = 0

    # Generated scenes, registered as "scenes_train" and "scenes_val" where a config names them.
    scenes = cfg.DATASETS.SCENES = CfgNode()
    scenes.TRAIN = 400
    scenes.VAL = 40
    scenes.SIZE = 192

    # "SGD" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Factor of the learning rate of the backbone's trunk.
    cfg.SOLVER.TRUNK_MULTIPLIER = 1.0
    # Batches of IMS_PER_BATCH images whose gradients are averaged into one step.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # "bfloat16" or "float16", where SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # The same of evaluation and prediction.
    cfg.TEST.AMP = CfgNode({"ENABLED": False, "DTYPE": "bfloat16"})
    # A step whose loss or gradient is NaN or infinite: "stop" the training, or "skip" the step.
    cfg.SOLVER.NON_FINITE = "stop"

    # An image with a broken or contradictory file: "stop" the training, or "skip" the image.
    cfg.DATALOADER.BAD_DATA = "stop"


def add_search_config(cfg: CfgNode) -> None:
    """Add the keys of a search, with their defaults, to a config."""
    search = cfg.SEARCH = CfgNode()
    search.SPACE = _space_keys()
    # "softmax" (Liu et al. 2019, DARTS), "sigmoid" (Chu et al. 2020, FairDARTS) or "gumbel" (Dong
    # and Yang 2019, GDAS).
    search.RELAXATION = "softmax"
    # A weight of each edge beside that of its operation: "none", "independent" or "softmax" over
    # the inputs of a node (Xu et al. 2020, PC-DARTS).
    search.EDGE_WEIGHTS = "none"
    # One channel of so many passes through the candidates (PC-DARTS); 1 for all.
    search.PARTIAL_CHANNELS = 1
    # Share of the training images that the architecture learns from, by a hash of seed and name.
    search.ARCHITECTURE_FRACTION = 0.2
    search.SPLIT_SEED = 0
    # Share of the iterations, at the start, in which only the weights learn (Xu et al. 2020: 0.3).
    search.WARMUP = 0.3
    # Of the architecture's gradient: 1 at the weights as they are, 2 through one virtual step of
    # SGD (DARTS, eq. 6 to 8), which takes three forward and backward passes instead of one.
    search.ORDER = 1
    # Adam of the architecture parameters; DARTS has 0.0003 and a decay of 0.001, with which little
    # moves in hundreds of iterations.
    search.OPTIMIZER = CfgNode({"LR": 0.05, "BETAS": [0.5, 0.999], "WEIGHT_DECAY": 0.0})
    # Divide each task's loss by its value at the first architecture step.
    search.NORMALIZE_LOSSES = True
    # Factors of what is added to the architecture's loss; each reaches its value at the end, the
    # first growing from the first iteration on, the second from two thirds of the search.
    search.BETA_DECAY = 0.0
    search.ENTROPY = 0.0
    # Factor of the expected share of edges that carry a flow (after Louizos et al. 2018, L0).
    search.SPARSITY = 0.3
    # Factor of relu(expected cost / budget - 1), and the budget in units of the human flows' cost.
    search.COST = 1.0
    search.BUDGET = 1.0
    # Share of the source that is added to every flow, fading to 0 at the end (Chu et al. 2021,
    # DARTS-).
    search.AUXILIARY_SKIP = 0.0
    # Temperature of the relaxation at the start, reaching 1 at the end in equal ratios.
    search.TEMPERATURE = 1.0
    # A checkpoint of a network that was trained with MODEL.SPATIALFLOW.GENOTYPE: the supernet
    # starts as that network, its other candidates at zero (Gao et al. 2020, MTL-NAS).
    search.WEIGHTS = ""
    # Logit added at the start to the flows of the human design; a search with it starts from what
    # it should find, and has to be named so.
    search.HUMAN_PRIOR = 0.0
    # Iterations between measurements of the dominant eigenvalue of the architecture's loss; 0 for
    # none. The architecture goes back and is frozen where the mean of five measurements, over that
    # of the five before it, is above 1 / STOP_RATIO (0.75 in Zela et al. 2020, RobustDARTS; 0 for
    # never).
    search.EIGENVALUE_PERIOD = 0
    search.STOP_RATIO = 0.0
    _add_derivation(search)


def _add_derivation(search: CfgNode) -> None:
    # How the genotype is derived: "argmax" (with ``none`` allowed), "presence" (an edge
    # whose operations together are likelier than ``none``), "threshold" (of 0.5),
    # "top_inputs" (two inputs of every node, the rule of DARTS) or "perturbation" (what hurts most
    # when it is removed, Wang et al. 2021, DARTS-PT), measured on so many held-out batches.
    search.RULE = "presence"
    # The loss of the derived network with the supernet's weights is measured on them as well.
    search.PERTURBATION_BATCHES = 4
    # Write the derived network with the supernet's weights, for MODEL.WEIGHTS of a training.
    search.INHERIT = False
    # Held-out images that report.html has results of, with the searched and the human flows.
    search.REPORT_IMAGES = 8


def _space_keys() -> CfgNode:
    space = CfgNode()
    # Pairs of branches that may be joined, "source>target" such as "box>cls"; empty for all.
    space.PAIRS = []
    # Stages of the targets; empty for all.
    space.STAGES = []
    space.PORTS = ["input"]
    # Others: "dil_conv_3x3", "channel_gate", "spatial_gate".
    space.OPERATIONS = ["identity", "conv_1x1", "conv_3x3", "sep_conv_3x3"]
    # Attention of the stuff head and convolutions of nodes, "<name>=<option>,<option>", such as
    # "stuff.attention.merged=none,channel,criss_cross" or "cls.1.conv=plain,deformable".
    space.CHOICES = []
    # Leave out edges whose target has levels that the source lacks.
    space.COMPLETE_LEVELS = False
    # Flows that a node may receive at most; 0 for any number.
    space.MAX_INPUTS = 0
    return space
