"""The recipe of the parameter route."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from transfuse.baselines.distillation_settings import DistillSettings
from transfuse.generate.references import is_remote
from transfuse.io.precision import Precision
from transfuse.train.settings import TrainSettings
from transfuse.transfer.delta_transport import TransportSettings
from transfuse.transfer.settings import ExtractionSettings, SensitivitySettings, StudentShape
from transfuse.types import StrictModel

Method = Literal["parametric", "online-distillation", "offline-distillation", "lora", "delta-transport"]

Control = Literal[
    "lora",
    "pissa",
    "random-block",
    "norm-matched-random",
    "parametric",
    "online-distillation",
    "offline-distillation",
    "delta-transport",
]
"""What the method is compared with: plain LoRA; the student's own principal weights as the start; a block from a drawn
place of a drawn teacher layer; random factors of the same singular values; or another method."""

BUILT_IN_CONTROLS: tuple[Control, ...] = ("lora", "pissa", "random-block", "norm-matched-random")

SWEEP = (3e-4, 1e-3, 3e-3)
"""Learning rates that each arm tries where controls are trained and none are named."""


PAPER_TRAIN: dict[str, Any] = {
    "n_epochs": 3,
    "max_length_tokens": 2048,
    "lora": {"rank": 16, "alpha": 16, "dropout": 0.05},
}
"""Training settings of the paper, where a recipe names none; alpha follows the rank, so that the scaling is 1."""

FROM_BLOCKS: frozenset[Control] = frozenset({"parametric", "random-block", "norm-matched-random"})
"""Arms that start from blocks of the teacher."""


class TransferEvaluateSettings(StrictModel):
    """What is measured of the student before and of every arm after training."""

    answers: Literal["auto", "number", "choice", "text"] = "auto"
    """How answers are compared: their final number, their letter, or as text; `auto` sees by the gold answers."""
    generate: bool = True
    """Let the models answer; off measures the gold answers' bits per byte only, which takes far less time."""
    max_new_tokens: PositiveInt = 256
    """An answer that has not ended by then is cut."""
    n_items: PositiveInt | None = None
    """Items of the eval file, the first; none means all."""
    teacher: bool = True
    """Measure the teacher as well, where it fits in memory."""
    texts: dict[str, Path | None] = {}
    """Texts for bits per byte, by name: JSONL of `{"text"}`; none means those that come with the package."""


class TransferRecipe(StrictModel):
    """Start a student's adapter from a larger teacher's weights, train it, and compare it with controls."""

    kind: Literal["transfer"] = "transfer"
    teacher: str | None = None
    """Model reference of the teacher; needed for extraction and for distillation. For offline distillation an endpoint
    will do (`openai:MODEL@URL`): it is taken as `distillation.generator`."""
    student: str
    """Model reference of the student, which stays untouched."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of everything that is drawn; a run without one is refused."""
    task: Path | None = None
    """JSONL of seed samples on which the teacher's sensitivity is measured; none takes the training file."""
    train_file: Path | None = None
    """JSONL of training samples; none stops after the extraction."""
    eval_file: Path | None = None
    """JSONL of eval samples; none measures losses in training only."""
    extraction: Path | None = None
    """Run folder of a finished `transfer extract` to start from, instead of extracting again."""
    task_adapter: Path | None = None
    """The teacher's task adapter, for delta transport: a PEFT LoRA folder."""
    method: Method = "parametric"
    controls: list[Control] = []
    """Trained beside the method on the same samples and steps."""
    n_seeds: PositiveInt = 1
    """Runs of every arm, with seeds counted up from `seed`."""
    learning_rates: list[PositiveFloat] | None = None
    """Tried by each arm for itself; the one of the least development loss counts. None tries 3e-4, 1e-3 and 3e-3 where
    there are controls, else train.learning_rate only."""
    development_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the training samples kept from training to choose the learning rate on."""
    n_train: PositiveInt | None = None
    """Samples of the training file, the first; none means all. With train.n_tokens, of these only as many are used as
    hold that many tokens, drawn by `seed`: a teacher is asked about no others."""
    precision: Precision = "auto"
    trust_remote_code: bool = False
    """Whether Python code that comes with a model may run."""
    max_rank: PositiveInt | None = None
    """Rank of the saved adapter; none keeps all of it (twice train.lora.rank), without loss."""
    sensitivity: SensitivitySettings = SensitivitySettings()
    extract: ExtractionSettings = ExtractionSettings()
    shape: StudentShape | None = None
    """With result `model`: the shape of the new student; none takes that of `student`."""
    result: Literal["adapter", "model"] = "adapter"
    """`model` writes the full-rank blocks as a new small student, and trains nothing."""
    distillation: DistillSettings = DistillSettings()
    transport: TransportSettings = TransportSettings()
    train: TrainSettings = TrainSettings.model_validate(PAPER_TRAIN)
    evaluate: TransferEvaluateSettings = TransferEvaluateSettings()
    n_checked_logits: NonNegativeInt = 4
    """Training samples on which the start is compared with the untouched student; 0 leaves the check out."""

    @property
    def rates(self) -> list[float | None]:
        """Learning rates that each arm tries; None stands for the default of the training settings."""
        if self.learning_rates:
            return list(self.learning_rates)
        return (
            list(SWEEP) if self.controls and self.train.learning_rate is None else [self.train.learning_rate]
        )

    @property
    def student_name(self) -> str:
        """What a report calls the student: its reference, or the sizes of a new one."""
        if self.shape is None:
            return self.student
        sizes = self.shape.model_dump(exclude_none=True)
        return f"a new student ({', '.join(f'{name} {size}' for name, size in sizes.items())})"

    @property
    def arms(self) -> list[Control]:
        """The method and its controls, each once."""
        return list(dict.fromkeys([self.method, *self.controls]))

    @property
    def extracts(self) -> bool:
        """Whether the run cuts blocks out of the teacher itself."""
        return self.extraction is None and (self.train_file is None or bool(FROM_BLOCKS & set(self.arms)))

    @property
    def held_out_share(self) -> float:
        """Share of the training samples that no arm trains on: a learning rate is chosen on them."""
        return self.development_share if len(self.rates) > 1 else 0.0

    @model_validator(mode="before")
    @classmethod
    def _trains_as_the_paper_does(cls, tree: Any) -> Any:
        """Fill in the paper's training settings beside those given."""
        train = tree.get("train", {}) if isinstance(tree, dict) else None
        if not isinstance(train, dict) or not isinstance(train.get("lora", {}), dict):
            return tree
        lora = {**PAPER_TRAIN["lora"], **train.get("lora", {})}
        if "alpha" not in train.get("lora", {}):
            lora["alpha"] = lora["rank"]
        return {**tree, "train": {**PAPER_TRAIN, **train, "lora": lora}}

    @model_validator(mode="before")
    @classmethod
    def _endpoint_is_generator(cls, tree: Any) -> Any:
        """A teacher that is no model on this machine can only write answers."""
        teacher = tree.get("teacher") if isinstance(tree, dict) else None
        settings = tree.get("distillation", {}) if isinstance(tree, dict) else None
        if not isinstance(teacher, str) or not isinstance(settings, dict) or not is_remote(teacher):
            return tree
        given = settings.get("generator") or {}
        generator = {"reference": teacher, **given} if isinstance(given, dict) else given
        return {**tree, "teacher": None, "distillation": {**settings, "generator": generator}}

    @model_validator(mode="after")
    def _has_what_it_takes(self) -> "TransferRecipe":
        arms = set(self.arms) if self.train_file is not None else {"parametric"}
        from_blocks = arms & FROM_BLOCKS
        asks_teacher = arms & {"online-distillation", "offline-distillation", "delta-transport"}
        if self.distillation.generator is not None:
            asks_teacher -= {"offline-distillation"}
        if self.teacher is None and (asks_teacher or (from_blocks and self.extraction is None)):
            named = ", ".join(sorted(asks_teacher or from_blocks))
            has_endpoint = self.distillation.generator is not None
            why = " that runs on this machine (an endpoint can only write answers)" if has_endpoint else ""
            raise ValueError(f"teacher is missing, which {named} needs; give --teacher MODEL{why}")
        if from_blocks and self.extraction is None and self.task is None and self.train_file is None:
            raise ValueError(
                "expected seed samples of the task; give --task FILE (JSONL of `messages` or `text`)"
            )
        if "delta-transport" in arms and self.task_adapter is None:
            raise ValueError(
                "delta-transport carries a task adapter of the teacher's; give --task-adapter FOLDER (a PEFT LoRA)"
            )
        if self.train.method != "lora":
            raise ValueError("train.method: the parameter route trains LoRA adapters; leave it at 'lora'")
        if self.train_file is None and (self.controls or self.method != "parametric"):
            raise ValueError("expected training samples; give --train FILE")
        if len(self.rates) > 1 and not self.development_share:
            raise ValueError(
                "development_share is 0, so there is nothing to choose a learning rate on; name one learning rate"
            )
        if self.shape is not None and self.result != "model":
            raise ValueError(
                "shape is given, but result is 'adapter'; give --as model, or leave the shape out"
            )
        return self
