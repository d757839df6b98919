"""All keys that SpatialFlow adds to Detectron2's config, with their defaults."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_spatialflow_config(cfg: CfgNode) -> None:
    """Add SpatialFlow's keys and those of its search to a Detectron2 config, in place.

    Args:
        cfg: Config of ``detectron2.config.get_cfg()``.
    """
    # Version 0.1 saved this key in every config. ``spatialflow.get_cfg`` reads it; other loaders
    # ignore it, with a warning.
    cfg.register_deprecated_key("SEARCH.ENABLED")
    own = cfg.MODEL.SPATIALFLOW = CfgNode()
    # Name of a file in configs/genotypes, or path of a JSON file.
    own.GENOTYPE = "spatialflow"
    # Attention of the stuff head. "from_genotype" takes the genotype's choices. "<site>=<option>"
    # replaces them, for example "merged=channel" or "levels=spatial,merged=criss_cross"
    # (spatialflow/config/options.py lists sites and options).
    own.STUFF_ATTENTION = "from_genotype"
    # Trunk of the backbone: "resnet" (MODEL.RESNETS.*), "timm:<model>", "efficientnet_lite0",
    # "efficientnet_lite2" or "mobilenet_v2".
    own.TRUNK = "resnet"
    # Start trunks other than "resnet" from pretrained weights when MODEL.WEIGHTS is empty: those of
    # their packages; for "timm:<model>" those of TRUNK_WEIGHTS, of the user's cache or of timm's
    # hub.
    own.TRUNK_PRETRAINED = True
    # File of pretrained weights for "timm:<model>", as timm.create_model reads it.
    own.TRUNK_WEIGHTS = ""
    # Compare the checksums of files of weights, and look for NaN and infinity in them, before they
    # are used. It takes less time than the reading itself; types are always checked.
    own.CHECK_WEIGHTS = True
    # Levels of the mask branch.
    own.MASK_IN_FEATURES = ["p3", "p4", "p5"]
    # A box whose sqrt(area) is MASK_CANONICAL_BOX_SIZE pixels is pooled from the level
    # MASK_CANONICAL_LEVEL, a box of twice the size from one level above.
    own.MASK_CANONICAL_BOX_SIZE = 112
    # Level for boxes of the canonical size: 4 for p4.
    own.MASK_CANONICAL_LEVEL = 4
    # Intersection over union from which a proposal learns the mask of a ground truth.
    own.MASK_PROPOSAL_IOU = 0.5
    # Input of the fusion: "labels" at the network's scale, resized by nearest neighbour (as the
    # reference), or the argmax of "logits" that are resized bilinearly to the original size.
    own.STUFF_FROM = "labels"
    # Denominators of the losses: those of each process, "per_process" (as the reference), or sums
    # over all processes, "global".
    own.LOSS_NORMALIZER = "per_process"
    # After fusion, a detection takes the empty pixels of its box if at least the share THRESH of
    # the box is empty.
    own.BOX_FILL = CfgNode({"ENABLED": False, "THRESH": 0.5})
    # Convolutions keep their weights in oneDNN's layout at inference on x86 CPUs; off by default.
    own.PACK_CONVOLUTIONS = False

    _add_refined_keys(own)
    _add_data_keys(cfg)
    _add_training_keys(cfg)
    cfg.SEARCH = _search_keys()
    _add_derivation_keys(cfg.SEARCH)
    cfg.SEARCH.SPACE = _search_space_keys()


def _add_refined_keys(own: CfgNode) -> None:
    """Add the keys of the refined network (docs/architecture.md)."""
    # Second box stage on regions, as in Faster R-CNN (arXiv 1506.01497): the dense boxes are its
    # proposals, limited by MODEL.RPN.POST_NMS_TOPK_* and NMS_THRESH. The other keys are those of
    # MODEL.ROI_HEADS and MODEL.ROI_BOX_HEAD, but NAME and NUM_CLASSES of ROI_HEADS. The thresholds
    # of detections are those of ROI_HEADS then, and MASK_PROPOSAL_IOU has no effect. The flow graph
    # gets a node "region.1", from which boxes are pooled.
    own.REGIONS = CfgNode({"ENABLED": False})
    # Which anchors learn a ground truth: those above MODEL.RETINANET.IOU_THRESHOLDS and its best
    # one ("iou", as the reference), or those above its own threshold ("atss", arXiv 1912.02424).
    own.ASSIGNMENT = "iou"
    # Start of flows that are added to a node's input: "random" (as the reference), or a last layer
    # of "zero", so that the network starts as the one without flows. Gates always start so.
    own.FLOW_INIT = "random"
    # Add the pyramid P to the outputs of the box, cls, region and mask branches: "none", "rms" for
    # P / rms(P), "learned" for P at a learned scale, on which SOLVER.WEIGHT_DECAY acts.
    own.RESIDUAL = "none"
    # Nodes from which regions and masks are pooled: convolutions of the "branch", or the "pyramid"
    # itself, with what flows add to it. A genotype's own choice for the node comes first.
    own.POOL_FROM = "branch"


def _add_data_keys(cfg: CfgNode) -> None:
    # A folder in COCO panoptic layout (images/, panoptic/, panoptic.json). It is registered as
    # "folder_train", "folder_val" and "folder_all".
    folder = cfg.DATASETS.FOLDER = CfgNode()
    # Path of the folder; "" for none.
    folder.PATH = ""
    # "supercategories" merges classes by the field supercategory of the JSON; "" keeps them.
    folder.REMAP = ""
    # Share of the images in "folder_val", chosen by a hash of SPLIT_SEED and the image's name.
    folder.VAL_FRACTION = 0.2
    # Seed of the split.
    folder.SPLIT_SEED = 0
    # Number of images to use, the first by name; 0 for all.
    folder.LIMIT = 0

    # Generated scenes. They are registered as "scenes_train" and "scenes_val" if DATASETS.TRAIN or
    # DATASETS.TEST names one of them.
    scenes = cfg.DATASETS.SCENES = CfgNode()
    # Number of training scenes.
    scenes.TRAIN = 400
    # Number of validation scenes.
    scenes.VAL = 40
    # Height and width of a scene in pixels.
    scenes.SIZE = 192

    # An image whose file is broken or contradicts another file: "stop" the training, or "skip" the
    # image.
    cfg.DATALOADER.BAD_DATA = "stop"
    # Value that is white in images of more than 8 bits a channel, such as 65535, 4095, or 1.0 for
    # floats: it becomes 255, in training as in prediction. None refuses such images.
    cfg.INPUT.WHITE_LEVEL = None


def _add_training_keys(cfg: CfgNode) -> None:
    # "SGD" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Factor of the learning rate in the backbone's trunk.
    cfg.SOLVER.TRUNK_MULTIPLIER = 1.0
    # Batches of IMS_PER_BATCH images whose gradients are averaged for one step.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Evaluate and save a moving average of the weights, which moves by 1 - DECAY in a step, and
    # faster at the start; the weights that learn are kept beside it in checkpoints.
    cfg.SOLVER.EMA = CfgNode({"ENABLED": False, "DECAY": 0.999})
    # Type of mixed precision in training if SOLVER.AMP.ENABLED: "bfloat16" or "float16".
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Mixed precision in evaluation and prediction, with the same types.
    cfg.TEST.AMP = CfgNode({"ENABLED": False, "DTYPE": "bfloat16"})
    # A step whose loss or gradient is NaN or infinite: "stop" the training, or "skip" the step.
    cfg.SOLVER.NON_FINITE = "stop"


def _search_keys() -> CfgNode:
    """Return the keys of a search without its space and its end (methods in docs/search.md)."""
    search = CfgNode()
    # Relaxation of the choice between operations: "softmax" (DARTS, arXiv 1806.09055), "sigmoid"
    # (FairDARTS, arXiv 1911.12126) or "gumbel" (GDAS, arXiv 1910.04465).
    search.RELAXATION = "softmax"
    # Weight of each edge, multiplied with that of its operation: "none", "independent" or "softmax"
    # over the inputs of a node (PC-DARTS, arXiv 1907.05737).
    search.EDGE_WEIGHTS = "none"
    # Pass one of this many channels through the candidate operations (PC-DARTS); 1 for all.
    search.PARTIAL_CHANNELS = 1
    # Share of the training images from which the architecture learns, chosen by a hash of
    # SPLIT_SEED and the image's name.
    search.ARCHITECTURE_FRACTION = 0.2
    # Seed of that split.
    search.SPLIT_SEED = 0
    # Share of the iterations, at the start, in which only the weights learn (PC-DARTS: 0.3).
    search.WARMUP = 0.3
    # Order of the architecture's gradient. 1 takes the weights as constant. 2 differentiates
    # through a virtual step of SGD (DARTS, equations 6 to 8), with three forward and backward
    # passes instead of one.
    search.ORDER = 1
    # Adam of the architecture parameters. With DARTS's LR 0.0003 and WEIGHT_DECAY 0.001 the
    # architecture hardly changes in hundreds of iterations.
    search.OPTIMIZER = CfgNode({"LR": 0.05, "BETAS": [0.5, 0.999], "WEIGHT_DECAY": 0.0})
    # Divide the loss of each task by its value at the first architecture step.
    search.NORMALIZE_LOSSES = True
    # Factor of the beta decay in the architecture's loss; it grows from 0 to this value
    # (Beta-DARTS, arXiv 2203.01665).
    search.BETA_DECAY = 0.0
    # Factor of the entropy in the architecture's loss; it grows from 0, from two thirds of the
    # search on, to this value.
    search.ENTROPY = 0.0
    # Factor of the expected share of edges that carry a flow (after L0, arXiv 1712.01312).
    search.SPARSITY = 0.3
    # Factor of relu(expected cost / budget - 1).
    search.COST = 1.0
    # Budget, in units of the cost of the human design's flows.
    search.BUDGET = 1.0
    # Share of the source that is added to every flow at the start; it falls to 0 at the end
    # (DARTS-, arXiv 2009.01027).
    search.AUXILIARY_SKIP = 0.0
    # Temperature of the relaxation at the start; it reaches 1 at the end in equal ratios.
    search.TEMPERATURE = 1.0
    # Checkpoint of a network trained with MODEL.SPATIALFLOW.GENOTYPE. The supernet starts as that
    # network, with all other candidates at zero (after MTL-NAS, arXiv 2003.14058); "" for none.
    search.WEIGHTS = ""
    # Logit that the flows of the human design start with. A search with it starts from its expected
    # result; name it so when you report it.
    search.HUMAN_PRIOR = 0.0
    # Iterations between two measurements of the dominant eigenvalue of the architecture loss's
    # Hessian; 0 for no measurement.
    search.EIGENVALUE_PERIOD = 0
    # Restore an earlier architecture and freeze it once the mean of five eigenvalues is above
    # 1 / STOP_RATIO times the mean of the five before (RobustDARTS, arXiv 1909.09656: 0.75); 0 for
    # never.
    search.STOP_RATIO = 0.0
    return search


def _add_derivation_keys(search: CfgNode) -> None:
    # Rule that derives the genotype: "argmax" (`none` included), "presence" (edges whose operations
    # are together more probable than `none`), "threshold" (0.5), "top_inputs" (two inputs of every
    # node, as DARTS) or "perturbation" (the flows whose removal hurts most; DARTS-PT,
    # arXiv 2108.04392).
    search.RULE = "presence"
    # Held-out batches for "perturbation", and for the loss of the derived network with the
    # supernet's weights.
    search.PERTURBATION_BATCHES = 4
    # Write the derived network with the supernet's weights, for MODEL.WEIGHTS of a training.
    search.INHERIT = False
    # Held-out images in report.html, with the results of the searched and of the human flows.
    search.REPORT_IMAGES = 8


def _search_space_keys() -> CfgNode:
    space = CfgNode()
    # Pairs of branches that flows may join, "<source>><target>" such as "box>cls"; [] for all.
    space.PAIRS = []
    # Stages of the target nodes; [] for all.
    space.STAGES = []
    # Ports of the target nodes: "input", "gate" or both.
    space.PORTS = ["input"]
    # Candidate operations of each edge. Others: "dil_conv_3x3", "channel_gate", "spatial_gate".
    space.OPERATIONS = ["identity", "conv_1x1", "conv_3x3", "sep_conv_3x3"]
    # Searched attention of the stuff head and searched convolutions, "<name>=<option>,<option>",
    # such as "stuff.attention.merged=none,channel,criss_cross" or "cls.1.conv=plain,deformable".
    space.CHOICES = []
    # Leave out edges whose target has levels that the source lacks.
    space.COMPLETE_LEVELS = False
    # Highest number of flows into a node; 0 for no limit.
    space.MAX_INPUTS = 0
    return space
