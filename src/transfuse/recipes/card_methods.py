"""What model cards say of each way to make a model: in a sentence, and in which papers."""

from typing import NamedTuple


class CardMethod(NamedTuple):
    """A way to make a model."""

    told: str
    arxiv: tuple[str, ...] = ()


INJECT: dict[str, CardMethod] = {
    "sft": CardMethod(
        "Supervised fine-tuning on questions and answers about documents, several for each fact (`transfuse inject`). "
        "A share of the facts was kept out of training as a control.",
        ("2404.00213",),
    ),
    "prompt-distillation": CardMethod(
        "Prompt distillation (`transfuse inject --method prompt-distillation`): the model learns, without the document "
        "in view, what it says itself with the right section before each question.",
        ("2412.14964", "2404.00213"),
    ),
}

TRANSFER: dict[str, CardMethod] = {
    "parametric": CardMethod(
        "Parametric transfer (`transfuse transfer`): the student's LoRA adapter starts at sub-matrices of a larger "
        "teacher's weights that are sensitive to the task, then trains on task samples. The base stays untouched.",
        ("2310.11451",),
    ),
    "lora": CardMethod("Plain LoRA fine-tuning on task samples.", ("2106.09685",)),
    "pissa": CardMethod(
        "LoRA that starts at the student's own principal weights (PiSSA), a control of parametric transfer.",
        ("2404.02948",),
    ),
    "random-block": CardMethod(
        "A control of parametric transfer: the adapter starts at blocks from drawn places of drawn teacher layers.",
        ("2310.11451",),
    ),
    "norm-matched-random": CardMethod(
        "A control of parametric transfer: the adapter starts at random factors of the same singular values as the "
        "teacher's blocks.",
        ("2310.11451",),
    ),
    "online-distillation": CardMethod(
        "Distillation: a LoRA adapter learns the teacher's distributions over the answers of task samples.",
        ("1503.02531",),
    ),
    "offline-distillation": CardMethod(
        "Distillation at sequence level: a LoRA adapter learns answers that the teacher wrote.",
        ("1606.07947",),
    ),
    "delta-transport": CardMethod(
        "A task adapter of the teacher, carried onto the student through maps between their activations, then trained "
        "on task samples.",
        ("2602.12952",),
    ),
}

STARTS: dict[str, CardMethod] = {
    "start": CardMethod(
        "Factors cut out of a larger teacher (`transfuse transfer extract`), from which a student's adapter starts its "
        "training. Nothing was trained: put onto the student as they are, they change it at random.",
        ("2310.11451",),
    ),
    "start-random-block": CardMethod(
        "A control of such factors: blocks from drawn places of drawn teacher layers. Nothing was trained.",
        ("2310.11451",),
    ),
    "delta-transport/untrained": CardMethod(
        "A task adapter of the teacher, carried onto the student through maps between their activations. Nothing was "
        "trained.",
        ("2602.12952",),
    ),
}

EXTRACTED_MODEL = CardMethod(
    "Cut out of a larger teacher (`transfuse transfer extract --as model`): the layers and sub-matrices that are "
    "most sensitive to the seed samples, at full rank, as a new small model. Nothing was trained: it is a start for "
    "training.",
    ("2310.11451",),
)

FUSED = CardMethod(
    "Fusion of distributions (`transfuse fuse`): the target learns plain texts together with what several source "
    "models, whatever their tokenizers, predict for them.",
    ("2401.10491",),
)
FUSED_WITH_ONE = CardMethod(
    "One part of pairwise fusion (`transfuse fuse --set strategy=pairwise`): the target fused with a single source, "
    "before the parts are merged.",
    ("2408.07990", "2401.10491"),
)
FUSED_PAIRWISE = CardMethod(
    "Pairwise fusion (`transfuse fuse --set strategy=pairwise`): the target was fused with each source apart, and the "
    "results merged.",
    ("2408.07990", "2401.10491"),
)

CLM = CardMethod(
    "Plain training on texts, next token by next token (`transfuse fuse --set strategy=clm`): no other model was asked."
)

FOLDED = CardMethod(
    "An adapter folded into its base (`transfuse merge`): base weights plus scaling x B A, in float32. Nothing was "
    "trained."
)
MERGED: dict[str, CardMethod] = {
    "linear": CardMethod("Weighted mean of the weights.", ("2203.05482",)),
    "slerp": CardMethod("Spherical interpolation between two models' weights."),
    "ties": CardMethod("TIES: the largest updates to a base, those with the elected sign.", ("2306.01708",)),
    "dare_linear": CardMethod("DARE: updates to a base, thinned at random, and their mean.", ("2311.03099",)),
    "dare_ties": CardMethod(
        "DARE with TIES: updates to a base, thinned at random, those with the elected sign.",
        ("2311.03099", "2306.01708"),
    ),
    "sce": CardMethod(
        "SCE: updates to a base where the models differ most, weighted by their squares.", ("2408.07990",)
    ),
    "model_stock": CardMethod(
        "Model stock: between base and mean, the nearer to the mean the more the updates point the same way.",
        ("2403.19522",),
    ),
}


def method_of(table: dict[str, CardMethod], name: str) -> CardMethod:
    """A method by its name; one that the table does not hold is told by its name alone."""
    return table.get(name, CardMethod(f"`{name}`."))
