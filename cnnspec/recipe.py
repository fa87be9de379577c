"""The vocabulary of the `train` section: datasets, augmentations, optimizers, schedules, and the `Recipe`.

Each choice is a class whose fields are its arguments; `cnnspec.training` has one table with their implementations.
Learning rates are per optimizer step, and epochs are passes over the training images.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from cnnspec.schema import Bounds, Count, Declared, Interval, NotNegative, Padding, Path, Positive, Probability

Share = Annotated[float, Bounds(0, below=1)]
"""Decay factor per step, in [0, 1)."""
Ratios = Annotated[Interval, Bounds(above=0)]
"""Aspect ratios."""


# --- data ----------------------------------------------------------------------------------------


class DataSet(Declared):
    """Images with labels.

    Attributes:
        classes: Number of classes, if known in advance.
        images: Numbers of training and test images, if known in advance.
    """

    classes: ClassVar[int | None] = None
    images: ClassVar[tuple[int, int] | None] = None


class SmallSet(DataSet):
    """A dataset that fits in memory.

    `val` training images are held out for validation. `train` and `test` limit the numbers of training and test
    images; `None` means all. The selection does not depend on the seed of a run.
    """

    val: Annotated[int, Bounds(0)] = 5000
    train: Count | None = None
    test: Count | None = None


class Cifar10(SmallSet, name="cifar10", classes=10, images=(50_000, 10_000)):
    """CIFAR-10: 50,000 training images of 3x32x32, 10,000 test images."""


class Cifar100(SmallSet, name="cifar100", classes=100, images=(50_000, 10_000)):
    """CIFAR-100: like CIFAR-10, with 100 classes."""


class FashionMnist(SmallSet, name="fashion_mnist", classes=10, images=(60_000, 10_000)):
    """Fashion-MNIST: 60,000 training images of 1x28x28, 10,000 test images."""


class Mnist(SmallSet, name="mnist", classes=10, images=(60_000, 10_000)):
    """MNIST: 60,000 training images of 1x28x28, 10,000 test images."""


class FashionMini(SmallSet, name="fashion_mini", classes=10, images=(6_000, 1_000)):
    """The subset of Fashion-MNIST that ships with the package."""

    val: Annotated[int, Bounds(0)] = 500


class Folder(DataSet, name="folder"):
    """A folder of images by class: `train/CLASS/*.png`, `test/`, and `val/` or a fraction `val` of `train/`.

    In a spec, `path` is relative to the folder of the spec and stays in it, with symbolic links resolved.
    """

    path: str
    val: Probability = 0.1


class HuggingFace(DataSet, name="hf"):
    """A dataset of the Hugging Face Hub at a fixed revision, a folder of Parquet files, or the URL of a list of them.

    `image` and `label` are the names of its columns. `val` is a fraction of `train`, held out if there is no split
    `validation`. With `stream`, images are read from the shards when they are needed, and `buffer` consecutive rows are
    shuffled together. Requires the extra `hf`.
    """

    path: str
    revision: str | None = None
    image: str = "image"
    label: str = "label"
    val: Probability = 0.1
    stream: bool = False
    buffer: Count = 1000


class FromPython(DataSet, name="python"):
    """The images of a program, passed as `TrainOptions(images=...)`. `val` is a fraction of `train`."""

    val: Probability = 0.1


# --- preprocessing -------------------------------------------------------------------------------


class Normalization(Declared):
    """Subtract a mean from each channel and divide by a standard deviation, on a scale from 0 to 1."""


class DatasetStatistics(Normalization, name="dataset"):
    """The mean and standard deviation of the training images."""


class ImageNetStatistics(Normalization, name="imagenet"):
    """The mean and standard deviation of ImageNet. Source: torchvision and timm."""


class Half(Normalization, name="half"):
    """Scale to -1..1: mean and standard deviation of 0.5."""


class NoNormalization(Normalization, name="none"):
    """Scale to 0..1."""


class Statistics(Normalization, name="normalize"):
    """The given mean and standard deviation, one number per channel or one for all."""

    mean: Annotated[tuple[float, ...], Bounds(-1000, 1000)]
    std: Annotated[tuple[float, ...], Bounds(1e-6, 1000)]


class Resize(Declared, name="resize"):
    """Resize images to the input size of the network.

    With `fit=crop`, the image is resized so that its shorter side has `size` pixels (or the input size divided by
    `crop`), then center-cropped; if neither is given, it is resized to the smallest size that contains the input, then
    center-cropped. `squash` changes the aspect ratio. `letterbox` fits the
    whole image into the input and pads it with black. Source: `torchvision.transforms.v2.Resize`, antialiased.
    """

    size: Count | None = None
    crop: Annotated[float, Bounds(0.01, 1)] | None = None
    mode: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    fit: Literal["crop", "squash", "letterbox"] = "crop"


# --- augmentation --------------------------------------------------------------------------------


class Augmentation(Declared):
    """A random transform of training images. Source: `torchvision.transforms.v2`."""


class HFlip(Augmentation, name="hflip"):
    """Flip horizontally with probability `p`."""

    p: Probability = 0.5


class VFlip(Augmentation, name="vflip"):
    """Flip vertically with probability `p`."""

    p: Probability = 0.5


class AlternatingFlip(Augmentation, name="alternating_flip"):
    """Flip half of the images horizontally in one epoch, and the other half in the next."""


class RandomCrop(Augmentation, name="random_crop"):
    """Pad by `pad` pixels, then crop to the input size at a random position."""

    pad: Padding = (4, 4)
    mode: Literal["zeros", "reflect", "edge"] = "zeros"


class Translate(Augmentation, name="translate"):
    """Shift by up to the fraction `by` of the size, and fill with black."""

    by: Probability


class RandomResizedCrop(Augmentation, name="random_resized_crop"):
    """Crop a region of relative area `scale` and aspect `ratio`, then resize it to the input size."""

    scale: Annotated[Interval, Bounds(0)] = Interval((0.08, 1.0))
    ratio: Ratios = Interval((3 / 4, 4 / 3))


class Rotate(Augmentation, name="rotate"):
    """Rotate by up to `degrees` in either direction."""

    degrees: NotNegative


class ColorJitter(Augmentation, name="color_jitter"):
    """Change brightness, contrast, saturation and hue by up to the given factors."""

    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Bounds(0, 0.5)] = 0.0


class RandomErasing(Augmentation, name="random_erasing"):
    """Erase a rectangle with probability `p`."""

    p: Probability = 0.5
    scale: Annotated[Interval, Bounds(0, 1)] = Interval((0.02, 0.33))
    ratio: Ratios = Interval((0.3, 3.3))


class Cutout(Augmentation, name="cutout"):
    """Erase a square of `side` pixels around a random pixel."""

    side: Count


class AutoAugment(Augmentation, name="autoaugment"):
    """AutoAugment with a policy learned on a dataset. Source: Cubuk et al. 2018, arXiv 1805.09501."""

    policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"


class RandAugment(Augmentation, name="randaugment"):
    """Apply `ops` random transforms of strength `magnitude`. Source: Cubuk et al. 2019, arXiv 1909.13719."""

    ops: Annotated[int, Bounds(0, 100)] = 2
    magnitude: Annotated[int, Bounds(0, 30)] = 9


class TrivialAugment(Augmentation, name="trivialaugment"):
    """Apply one random transform of random strength. Source: Mueller and Hutter 2021, arXiv 2103.10158."""


# --- optimizers and schedules --------------------------------------------------------------------


class Optimizer(Declared):
    """Base class of optimizers. Source: `torch.optim`."""

    lr: NotNegative

    def remembers(self, axes: int) -> int:
        """Return the number of optimizer state values per element of a weight with `axes` dimensions."""
        return 2


class Sgd(Optimizer, name="sgd"):
    """torch.optim.SGD."""

    lr: NotNegative = 0.1
    momentum: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    nesterov: bool = False

    def remembers(self, axes: int) -> int:
        return 1 if self.momentum else 0


class Adam(Optimizer, name="adam"):
    """torch.optim.Adam."""

    lr: NotNegative = 1e-3
    weight_decay: NotNegative = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.999


class AdamW(Adam, name="adamw"):
    """torch.optim.AdamW."""

    weight_decay: NotNegative = 0.01


class NAdam(Adam, name="nadam"):
    """torch.optim.NAdam."""

    lr: NotNegative = 2e-3


class RAdam(Adam, name="radam"):
    """torch.optim.RAdam."""


class Adamax(Adam, name="adamax"):
    """torch.optim.Adamax."""

    lr: NotNegative = 2e-3


class Adagrad(Optimizer, name="adagrad"):
    """torch.optim.Adagrad."""

    lr: NotNegative = 1e-2
    weight_decay: NotNegative = 0.0

    def remembers(self, axes: int) -> int:
        return 1


class Adadelta(Optimizer, name="adadelta"):
    """torch.optim.Adadelta."""

    lr: NotNegative = 1.0
    weight_decay: NotNegative = 0.0
    rho: Share = 0.9


class Muon(Optimizer, name="muon"):
    """torch.optim.Muon for convolution and linear weights, scaled to AdamW's rates; AdamW at `adam_lr` for the rest."""

    lr: NotNegative = 1e-3
    momentum: NotNegative = 0.95
    weight_decay: NotNegative = 0.1
    nesterov: bool = True
    adam_lr: NotNegative = 1e-3

    def remembers(self, axes: int) -> int:
        return 1 if axes > 1 else 2


class RmsProp(Optimizer, name="rmsprop"):
    """torch.optim.RMSprop."""

    lr: NotNegative = 1e-2
    momentum: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    alpha: Share = 0.99

    def remembers(self, axes: int) -> int:
        return 2 if self.momentum else 1


class Schedule(Declared):
    """Base class of learning rate schedules. Source: `torch.optim.lr_scheduler`."""


class ConstantRate(Schedule, name="constant"):
    """A constant learning rate."""

    warmup: NotNegative = 0.0


class MultiStep(Schedule, name="multistep"):
    """Multiply by `gamma` after each epoch in `at`."""

    at: Annotated[tuple[int, ...], Bounds(1)]
    gamma: NotNegative = 0.1
    warmup: NotNegative = 0.0


class Step(Schedule, name="step"):
    """Multiply by `gamma` every `every` epochs."""

    every: Count
    gamma: NotNegative = 0.1
    warmup: NotNegative = 0.0


class Cosine(Schedule, name="cosine"):
    """Half a cosine from the optimizer's rate down to `end`, per step, after `warmup` epochs."""

    end: NotNegative = 0.0
    warmup: NotNegative = 0.0


class Linear(Schedule, name="linear"):
    """Linear decay from the optimizer's rate to `end`, per step, after `warmup` epochs."""

    end: NotNegative = 0.0
    warmup: NotNegative = 0.0


class OneCycle(Schedule, name="onecycle"):
    """Rise to the optimizer's rate over the fraction `warmup` of all steps, then decay to almost 0.

    Source: Smith and Topin 2017, arXiv 1708.07120; torch's OneCycleLR with `max_lr` = the optimizer's `lr`.
    """

    warmup: Probability = 0.3
    anneal: Literal["cos", "linear"] = "cos"


# --- batch normalization -------------------------------------------------------------------------


class BatchStatistics(Declared):
    """The images over which batch normalization computes its mean and variance in training."""


class SyncStatistics(BatchStatistics, name="sync"):
    """All images of a step or of a part of it, over all devices. Source: torch.nn.SyncBatchNorm."""


class LocalStatistics(BatchStatistics, name="local"):
    """The images of each device, so that the result depends on the number of devices. Source: torch.nn.BatchNorm2d."""


class GhostStatistics(BatchStatistics, name="ghost"):
    """Groups of `images` consecutive images, on one device each. Source: Hoffer et al. 2017, arXiv 1705.08741."""

    images: Count = 32


# --- transfer learning and loss ------------------------------------------------------------------


class Freeze(Declared, name="freeze"):
    """Exclude modules from training.

    Their weights stay as they are, and they run in evaluation mode: batch norm uses its running statistics and keeps
    them, and dropout is inactive. `until` freezes all modules that run before the named one.
    """

    modules: tuple[Path, ...] = ()
    until: Path | None = None


class Group(Declared, name="group"):
    """Modules with a learning rate of their own, which the schedule scales as it does that of the optimizer."""

    modules: tuple[Path, ...]
    lr: NotNegative


class CrossEntropy(Declared, name="cross_entropy"):
    """torch.nn.CrossEntropyLoss; `balanced` weights a class by the inverse of its number of training images."""

    class_weights: Literal["balanced"] | Annotated[tuple[float, ...], Bounds(0)] | None = None


DATA_SETS = DataSet.kinds()
AUGMENTATIONS = Augmentation.kinds()
OPTIMIZERS = Optimizer.kinds()
SCHEDULES = Schedule.kinds()
NORMALIZATIONS = Normalization.kinds()
RESIZES: dict[str, type[Resize]] = {Resize.name: Resize}
FREEZES: dict[str, type[Freeze]] = {Freeze.name: Freeze}
GROUPS: dict[str, type[Group]] = {Group.name: Group}
LOSSES: dict[str, type[CrossEntropy]] = {CrossEntropy.name: CrossEntropy}
BN_STATISTICS = BatchStatistics.kinds()
PRECISIONS = ("fp32", "bf16", "fp16")
CHOICES: dict[str, dict[str, type[Any]]] = {
    "data": DATA_SETS,
    "normalize": NORMALIZATIONS,
    "resize": RESIZES,
    "augment": AUGMENTATIONS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "bn_statistics": BN_STATISTICS,
    "freeze": FREEZES,
    "rates": GROUPS,
}
"""The entries whose value is a choice from a table. A choice with the name of its entry is omitted: `resize 256`."""
PIPELINES = ("augment", "rates")
"""The choices of which an entry can have several, joined by `|`."""
OF_MODULES = ("freeze", "rates")
"""The entries whose positional arguments are paths of modules."""
NOUNS = {
    "data": "dataset",
    "augment": "augmentation",
    "normalize": "normalization",
    "bn_statistics": "kind of batch statistics",
    "rates": "group of modules",
}
"""What messages call a choice, if not by the name of its entry."""


def plain(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON."""
    return (*value,) if isinstance(value, tuple) else str(value) if isinstance(value, str) else value


class Setting(BaseModel):
    """A choice with the values of all its arguments, as stored in a Model and in `result.json`.

    Attributes:
        name: The name of the choice.
        args: The values of its arguments.
        base: The folder of the spec that states a path. The path is relative to it and must stay in it. None if the
            path comes from the user, or there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    args: dict[str, bool | int | float | str | tuple[int | float | str, ...] | None] = {}
    base: str | None = None

    @model_serializer(mode="wrap")
    def _without_base(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = serialize(self)
        if found["base"] is None:
            del found["base"]
        return found

    def from_python(self) -> "Setting":
        """Return the entry `data` for images of a program: this one if it is `python`, or the default."""
        return self if self.name == FromPython.name else Setting.of(FromPython())

    @classmethod
    def of(cls, declared: Declared) -> "Setting":
        return cls.model_construct(
            name=declared.name, args={name: plain(value) for name, value in declared.settings().items()}
        )


ORIGINS = {"specified", "overridden"}
"""Fields of a `Recipe` that record where its values come from. Recipes that differ only here train identically."""


class Recipe(BaseModel):
    """A training recipe; an entry that a spec omits has the default given here.

    Attributes:
        epochs: Passes over the training images.
        planned: Number of epochs that the schedule was written for, if a run has another: the epochs of the
            schedule are then scaled, so that a shorter run has the same shape.
        batch: Images per step, over all devices.
        ema: Decay of an exponential moving average of the weights, which is evaluated in place of the weights.
        early_stop: Number of epochs without a better validation accuracy after which training stops.
        val_every: Number of epochs from one validation to the next. The last epoch is always validated.
        mixup: Blend two images with a ratio from Beta(mixup, mixup). Source: arXiv 1710.09412.
        cutmix: Paste a box of one image into another, its area from Beta(cutmix, cutmix). Source: arXiv 1905.04899.
        bn_statistics: The images over which batch normalization computes its statistics.
        rates: Groups of modules with their own learning rates. The longest path that contains a module counts.
        clip: Maximum norm of all gradients together.
        accumulate: Number of parts in which a batch is computed, accumulating their gradients.
        decay: Parameters with weight decay: `all`, or `weights`, which excludes norms and biases.
        minutes: Time limit of the training.
        precision: Compute precision; `auto` is bf16 on a GPU that has it, and fp32 elsewhere.
        compile: Mode in which the network runs through `torch.compile`; `cuda_graphs` only records and replays its
            kernels, which takes seconds instead of minutes. Source: `torch.compile`.
        tta: Test-time augmentation: `hflip` averages the logits of an image and of its horizontal flip.
        specified: Names of the fields that the spec or `--set` sets.
        overridden: Names of the fields that `--set` or an option of the run sets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    data: Setting = Setting.of(Cifar10())
    normalize: Setting = Setting.of(DatasetStatistics())
    resize: Setting = Setting.of(Resize())
    augment: tuple[Setting, ...] = ()
    optimizer: Setting = Setting.of(AdamW())
    schedule: Setting = Setting.of(Cosine())
    loss: Setting = Setting.of(CrossEntropy())
    bn_statistics: Setting = Setting.of(SyncStatistics())
    freeze: Setting = Setting.of(Freeze())
    rates: tuple[Setting, ...] = ()
    epochs: int = 20
    planned: int | None = None
    batch: int = 128
    seed: int = 42
    label_smoothing: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema: float | None = None
    early_stop: int | None = None
    val_every: int = 1
    mixup: float | None = None
    cutmix: float | None = None
    clip: float | None = None
    accumulate: int = 1
    decay: Literal["all", "weights"] = "all"
    minutes: float | None = None
    compile: Literal["default", "reduce_overhead", "max_autotune", "cuda_graphs"] | None = None
    tta: Literal["hflip"] | None = None
    specified: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()

    @property
    def ghost(self) -> int | None:
        """The number of images of a group of ghost batch normalization, None without it."""
        images = self.bn_statistics.args.get("images")
        return images if isinstance(images, int) else None

    def over(self, epochs: int) -> "Recipe":
        """Return the recipe for another number of epochs; the schedule keeps its shape."""
        written = self.planned or (self.epochs if "epochs" in self.specified else None)
        return self.model_copy(update={"epochs": epochs, "planned": written if written != epochs else None})


class Scalars(Declared, name="train"):
    """The entries that are a single value, with types and bounds."""

    epochs: Count = 20
    batch: Count = 128
    seed: Annotated[int, Bounds(0)] = 42
    label_smoothing: Share = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema: Share | None = None
    early_stop: Count | None = None
    val_every: Count = 1
    mixup: Positive | None = None
    cutmix: Positive | None = None
    clip: Positive | None = None
    accumulate: Count = 1
    decay: Literal["all", "weights"] = "all"
    minutes: NotNegative | None = None
    compile: Literal["default", "reduce_overhead", "max_autotune", "cuda_graphs"] | None = None
    tta: Literal["hflip"] | None = None


ENTRIES = (*CHOICES, *Scalars.parameters)
"""The names of all entries of the `train` section."""
