"""Compare the shipped networks with reference implementations: keys, shapes, values, gradients, initial weights."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from cnnspec import build, load
from cnnspec.semantics.loader import shipped_folder, shipped_specs

QUICK = {
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3"),
    *("resnet50d", "seresnet50", "dpn68", "inception_v4"),
    *("skresnet18", "ecaresnet50d", "resnest14d", "nf_resnet50"),
    "lraspp_mobilenet_v3_large",
    "resnet50_fpn",
    *("dla34", "rexnet_100", "hardcorenas_a", "mobileone_s0", "tresnet_m"),
    *("darknet53", "repvgg_a0", "ghostnet_100", "res2net50_26w_4s", "ese_vovnet19b_dw"),
    *(
        "convnext_tiny",
        "efficientnet_b0",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_x_400mf",
        "regnet_y_400mf",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
    ),
}
"""The networks that always run, the smallest of each family. The others are marked slow."""


@dataclass(frozen=True)
class Reference:
    """A published implementation.

    Attributes:
        parameters: Trainable weights, including auxiliary heads.
        macs: Multiply-adds of convolutions and linear layers for one image of the native size, without heads.
        size: The native size.
        other: A smaller valid size.
        trained: The size in training. An auxiliary head may need more than `other`.
        tolerance: The largest difference of a logit, relative to the largest logit. The header of the spec says why.
    """

    name: str
    parameters: int
    macs: int
    library: str = "torchvision"
    size: int = 224
    other: int = 64
    trained: int = 64
    tolerance: float = 0.0

    def build(self) -> nn.Module:
        """Build the module with the initial weights of its library."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.library == "torchvision":
                with torch.device("cpu") if self.name.startswith("regnet") else contextlib.nullcontext():
                    return getattr(torchvision.models, self.name)()  # a RegNet computes its sizes with tensors
            if self.library == "segmentation":
                heads = {} if self.name.startswith("lraspp") else {"aux_loss": True}
                make = getattr(torchvision.models.segmentation, self.name)
                return make(weights=None, weights_backbone=None, **heads)
            if self.library == "detection":
                make = torchvision.models.detection.backbone_utils.resnet_fpn_backbone
                backbone = self.name.removesuffix("_fpn")
                return make(backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
            return timm.create_model(self.name)


REFERENCES = [
    Reference("alexnet", 61_100_840, 714_188_480),
    Reference("vgg11", 132_863_336, 7_609_090_048),
    Reference("vgg13", 133_047_848, 11_308_466_176),
    Reference("vgg16", 138_357_544, 15_470_264_320),
    Reference("vgg19", 143_667_240, 19_632_062_464),
    Reference("vgg11_bn", 132_868_840, 7_609_090_048),
    Reference("vgg13_bn", 133_053_736, 11_308_466_176),
    Reference("vgg16_bn", 138_365_992, 15_470_264_320),
    Reference("vgg19_bn", 143_678_248, 19_632_062_464),
    Reference("googlenet", 13_004_888, 1_498_376_192),
    Reference("inception_v3", 27_161_264, 5_713_216_096, size=299, other=75, trained=299),
    Reference("resnet18", 11_689_512, 1_814_073_344),
    Reference("resnet34", 21_797_672, 3_663_761_408),
    Reference("resnet50", 25_557_032, 4_089_184_256),
    Reference("resnet101", 44_549_160, 7_801_405_440),
    Reference("resnet152", 60_192_808, 11_513_626_624),
    Reference("resnext50_32x4d", 25_028_904, 4_230_479_872),
    Reference("resnext101_32x8d", 88_791_336, 16_414_015_488),
    Reference("resnext101_64x4d", 83_455_272, 15_460_270_080),
    Reference("wide_resnet50_2", 68_883_240, 11_398_021_120),
    Reference("wide_resnet101_2", 126_886_696, 22_753_050_624),
    Reference("densenet121", 7_978_856, 2_834_161_664),
    Reference("densenet161", 28_681_000, 7_727_907_072),
    Reference("densenet169", 14_149_480, 3_359_843_328),
    Reference("densenet201", 20_013_928, 4_291_365_888),
    Reference("convnext_base", 88_591_464, 15_354_729_472, tolerance=1e-5),
    Reference("convnext_large", 197_767_336, 34_361_433_600, tolerance=1e-5),
    Reference("convnext_small", 50_223_688, 8_683_712_256, tolerance=1e-5),
    Reference("convnext_tiny", 28_589_128, 4_455_531_264, tolerance=1e-5),
    Reference("efficientnet_b0", 5_288_548, 385_814_752),
    Reference("efficientnet_b1", 7_794_184, 686_802_832, size=240),
    Reference("efficientnet_b2", 9_109_994, 1_087_529_456, size=288),
    Reference("efficientnet_b3", 12_233_232, 1_827_141_392, size=300),
    Reference("efficientnet_b4", 19_341_616, 4_393_771_024, size=380),
    Reference("efficientnet_b5", 30_389_784, 10_266_384_752, size=456),
    Reference("efficientnet_b6", 43_040_704, 19_067_593_536, size=528),
    Reference("efficientnet_b7", 66_347_960, 37_745_884_192, size=600),
    Reference("efficientnet_v2_l", 118_515_272, 56_079_699_008, size=480),
    Reference("efficientnet_v2_m", 54_139_356, 24_582_460_384, size=480),
    Reference("efficientnet_v2_s", 21_458_488, 8_365_617_152, size=384),
    Reference("mnasnet0_5", 2_218_512, 104_455_968),
    Reference("mnasnet0_75", 3_170_208, 215_493_104),
    Reference("mnasnet1_0", 4_383_312, 314_415_872),
    Reference("mnasnet1_3", 6_282_256, 526_362_432),
    Reference("mobilenet_v2", 3_504_872, 300_774_272),
    Reference("mobilenet_v3_large", 5_483_032, 216_589_760),
    Reference("mobilenet_v3_small", 2_542_856, 56_510_400),
    Reference("regnet_x_16gf", 54_278_536, 15_940_755_456),
    Reference("regnet_x_1_6gf", 9_190_136, 1_602_849_792),
    Reference("regnet_x_32gf", 107_811_560, 31_735_929_792),
    Reference("regnet_x_3_2gf", 15_296_552, 3_176_621_952),
    Reference("regnet_x_400mf", 5_495_976, 413_812_608),
    Reference("regnet_x_800mf", 7_259_656, 799_699_712),
    Reference("regnet_x_8gf", 39_572_648, 7_995_132_416),
    Reference("regnet_y_128gf", 644_812_894, 127_517_815_680),
    Reference("regnet_y_16gf", 83_590_140, 15_911_510_272),
    Reference("regnet_y_1_6gf", 11_202_430, 1_612_076_160),
    Reference("regnet_y_32gf", 145_046_770, 32_279_552_832),
    Reference("regnet_y_3_2gf", 19_436_338, 3_176_482_752),
    Reference("regnet_y_400mf", 4_344_144, 401_842_848),
    Reference("regnet_y_800mf", 6_432_512, 833_856_256),
    Reference("regnet_y_8gf", 39_381_472, 8_473_070_592),
    Reference("shufflenet_v2_x0_5", 1_366_792, 40_476_448),
    Reference("shufflenet_v2_x1_0", 2_278_604, 144_907_992),
    Reference("shufflenet_v2_x1_5", 3_503_624, 295_759_392),
    Reference("shufflenet_v2_x2_0", 7_393_996, 583_253_464),
    Reference("squeezenet1_0", 1_248_424, 818_924_576),
    Reference("squeezenet1_1", 1_235_496, 349_151_936),
    Reference("fcn_resnet50", 35_322_218, 142_725_772_800, "segmentation", size=520, other=65, trained=65),
    Reference("deeplabv3_resnet50", 42_004_074, 168_731_205_888, "segmentation", size=520, other=65, trained=65),
    Reference("resnet50_fpn", 26_852_416, 6_929_104_896, "detection"),
    Reference("lraspp_mobilenet_v3_large", 3_221_538, 2_086_219_688, "segmentation", size=520, other=65, trained=65),
    Reference("inception_v4", 42_679_816, 12_253_974_624, "timm", size=299, other=75, trained=75),
    Reference("inception_resnet_v2", 55_843_464, 13_155_794_016, "timm", size=299, other=75, trained=75),
    Reference("dpn68", 12_611_602, 2_326_163_456, "timm"),
    Reference("dpn92", 37_668_392, 6_501_684_224, "timm"),
    Reference("convmixer_768_32", 21_110_248, 20_676_851_712, "timm"),
    Reference("cspresnet50", 21_616_168, 4_517_240_832, "timm", size=256),
    Reference("darknet53", 41_609_928, 9_285_115_904, "timm", size=256),
    Reference("ese_vovnet19b_dw", 6_543_080, 1_333_489_824, "timm"),
    Reference("ghostnet_100", 5_182_508, 141_150_512, "timm"),
    Reference("hrnet_w18_small", 13_187_464, 1_601_508_352, "timm"),
    Reference("legacy_xception", 22_855_952, 8_357_403_496, "timm", size=299),
    Reference("mixnet_s", 4_134_606, 239_173_360, "timm"),
    Reference("repvgg_a0", 9_108_968, 1_512_581_120, "timm"),
    Reference("res2net50_26w_4s", 25_699_120, 4_255_166_464, "timm"),
    Reference("vovnet39a", 22_600_296, 7_072_227_328, "timm"),
    Reference("xception41", 26_969_560, 9_204_134_312, "timm", size=299),
    Reference("skresnet18", 11_958_056, 1_814_337_536, "timm"),
    Reference("ecaresnet50d", 25_576_350, 4_328_912_640, "timm"),
    Reference("resnest14d", 10_611_688, 2_749_405_184, "timm"),
    Reference("resnest50d", 27_483_240, 5_371_160_576, "timm"),
    Reference("resnetv2_50x1_bit", 25_549_352, 4_089_184_256, "timm"),
    Reference("nf_resnet50", 25_557_032, 5_340_348_416, "timm", size=256),
    Reference("resnetblur50", 25_557_032, 5_133_020_672, "timm"),
    Reference("resnet50d", 25_576_264, 4_328_824_832, "timm"),
    Reference("seresnet50", 28_088_024, 4_091_699_200, "timm"),
    Reference("dla34", 15_742_104, 3_060_043_776, "timm"),
    Reference("selecsls42b", 32_458_248, 2_971_924_480, "timm"),
    Reference("rexnet_100", 4_796_873, 398_370_392, "timm"),
    Reference("mobileone_s0", 5_293_272, 1_051_935_232, "timm"),
    Reference("inception_next_tiny", 28_055_680, 4_188_634_272, "timm"),
    Reference("cspdarknet53", 27_642_184, 6_533_652_480, "timm", size=256),
    Reference("hardcorenas_a", 5_260_232, 224_227_936, "timm"),
    Reference("nfnet_f0", 71_489_272, 6_977_003_520, "timm", size=192),
    Reference("tresnet_m", 31_389_032, 5_736_545_792, "timm"),
]

ALL = [pytest.param(reference, id=reference.name) for reference in REFERENCES]
SOME = [
    pytest.param(reference, id=reference.name, marks=() if reference.name in QUICK else pytest.mark.slow)
    for reference in REFERENCES
]

PUBLISHED = {
    "resnet1202": (19_423_930, "19.4M"),
    "preact_resnet164": (1_703_258, "1.7M"),
    "preact_resnet1001": (10_327_706, "10.3M"),
    "densenet40_12": (1_019_722, "1.0M"),
    "densenet_bc100_12": (769_162, "0.8M"),
    "densenet_bc190_40": (25_624_430, "25.6M"),
    "resnet18_cifar": (11_173_962, "11.2M"),
    "wide_resnet28_10": (36_479_194, "36.5M"),
    "resnext29_8x64d": (34_426_698, "34.4M"),
    "resnet18_d2l": (11_178_378, "11.2M"),
    "resnet18_nndl": (11_180_170, "11.2M"),
    "lenet5": (61_706, "0.1M"),
    "nin": (966_986, "1.0M"),
}
"""The networks for small images: their weights, and the rounded count in the papers."""

DEEP = {"resnet1202", "preact_resnet164", "preact_resnet1001", "densenet_bc100_12", "densenet_bc190_40"}
"""Networks of many equal units. Running a few of them is sufficient."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread. With small inputs, threads wait for each other, and one thread adds in a fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- parameters and multiply-adds -----------------------------------------------------------------


@pytest.mark.parametrize("reference", ALL)
def test_parameters_and_macs(reference: Reference) -> None:
    graph = load(reference.name)
    assert (graph.parameter_count, graph.macs) == (reference.parameters, reference.macs)
    assert graph.input_shape == (3, reference.size, reference.size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    graph = load(name)
    count, rounded = PUBLISHED[name]
    assert (graph.parameter_count, f"{graph.parameter_count / 1e6:.1f}M") == (count, rounded)
    assert "params" in {expect.metric for expect in graph.model.expects}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_for_small_images_run(name: str) -> None:
    graph = load(name, **({"n": 2} if name in DEEP else {}))
    with torch.device("meta"):
        module = build(graph)
        assert module(torch.empty(2, *graph.input_shape)).shape == (2, 10)
    assert sum(p.numel() for p in module.parameters()) == graph.parameter_count


def test_auxiliary_heads_have_the_weights_of_the_papers() -> None:
    weights = {name: {head.name: head.weight for head in load(name).aux} for name in ("googlenet", "inception_v3")}
    assert weights == {"googlenet": {"aux1": 0.3, "aux2": 0.3}, "inception_v3": {"AuxLogits": 0.4}}


def test_nndl_without_shortcuts_is_a_chain() -> None:
    graph = load("resnet18_nndl", residual=False)
    assert {node.op.name for node in graph} & {"add", "concat"} == set()
    assert all(len(node.inputs) == 1 for node in graph)


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ALL)
def test_keys_and_shapes(reference: Reference) -> None:
    with torch.device("meta"):
        theirs, ours = reference.build(), build(reference.name)
    assert _shapes(ours) == _shapes(theirs)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


# --- exact values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", SOME)
def test_logits_are_equal_in_evaluation(reference: Reference) -> None:
    theirs, ours = _pair(reference)
    theirs.eval()
    ours.eval()
    for size in (reference.size, reference.other):
        x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.inference_mode():
            expected, got = theirs(x), ours(x)
        if load(reference.name).taps:
            assert list(got) == list(expected)
            pairs = [(got[name], expected[name]) for name in expected]
        else:
            pairs = [(got, _outputs(expected)[0])]
        for one, other in pairs:
            assert 0 < other.std() < 1e30
            assert _are_equal(one, other, reference), size


@pytest.mark.parametrize("reference", SOME)
def test_training_is_equal(reference: Reference) -> None:
    theirs, ours = _pair(reference)
    x = torch.randn(2, 3, reference.trained, reference.trained, generator=torch.Generator().manual_seed(3))
    results: list[tuple[Tensor, ...]] = []
    for module in (theirs, ours):
        module.train()
        if reference.library == "segmentation":  # torchvision runs the auxiliary head last: its dropout draws later
            for dropout in (part for part in module.modules() if isinstance(part, nn.Dropout)):
                dropout.p = 0.0
        torch.manual_seed(5)
        results.append(_outputs(module(x)))
        torch.stack([output.square().mean() for output in results[-1]]).sum().backward()
    assert [o.shape for o in results[1]] == [o.shape for o in results[0]]
    assert all(_are_equal(got, expected, reference) for got, expected in zip(results[1], results[0], strict=True))
    gradients = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        expected, got = parameter.grad, gradients[key].grad
        assert expected is not None
        assert got is not None
        # an auxiliary head that runs earlier than in torchvision adds the gradients of its source in another order
        bound = max(1e-5 if reference.library == "segmentation" else 2e-6, 10 * reference.tolerance)
        assert torch.equal(got, expected) or (got - expected).norm() <= bound * expected.norm(), key
    statistics = dict(ours.named_buffers())
    assert all(torch.equal(statistics[key], value) for key, value in theirs.named_buffers())


def _are_equal(got: Tensor, expected: Tensor, reference: Reference) -> bool:
    return bool((got - expected).abs().max() <= reference.tolerance * expected.abs().max())


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnext29_8x64d", "resnet18_nndl"])
def test_small_resnets_equal_the_large_ones_with_another_stem(name: str) -> None:
    theirs, ours = _small_resnet(name), build(name)
    _randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, *load(name).input_shape)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def _small_resnet(name: str) -> Any:
    """Build a ResNet of torchvision and change it as the header of the spec describes."""
    if name == "resnext29_8x64d":
        resnet: Any = torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [3, 3, 3, 1], num_classes=10, groups=8, width_per_group=64
        )
        resnet.layer4, resnet.fc = nn.Identity(), nn.Linear(1024, 10)
    else:
        resnet = torchvision.models.resnet18(num_classes=10)
    if name == "resnet18_nndl":
        for module in resnet.modules():
            if isinstance(module, nn.Conv2d):
                module.bias = nn.Parameter(torch.zeros(module.out_channels))
        resnet.conv1 = nn.Conv2d(1, 64, 7, 2, 3)
    else:
        resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return resnet


def _pair(reference: Reference) -> tuple[nn.Module, nn.Module]:
    """Return the reference with random weights and statistics, and our network with the same, loaded by key."""
    with torch.device("meta"):  # both are filled below, so skip initialization
        theirs, ours = reference.build(), build(reference.name)
    theirs, ours = theirs.to_empty(device="cpu"), ours.to_empty(device="cpu")
    for module in (*theirs.modules(), *ours.modules()):
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    _randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def _randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            value.zero_()
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(("running_var", "weight")):
            value.uniform_(0.3, 1, generator=generator)
        else:
            value.normal_(0, 0.2, generator=generator)


def _outputs(result: Any) -> tuple[Tensor, ...]:
    """Return the logits, followed by those of the auxiliary heads, in order from the input."""
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, dict):
        return tuple(result.values())
    if hasattr(result, "aux"):
        return (result.logits, *result.aux)
    return (result.logits, *reversed(result[1:]))


# --- initial weights ------------------------------------------------------------------------------


OTHER_INITS = {"repvgg_a0"}  # timm draws the biases of its norms, which no scheme can state
OTHER_INITS |= {"resnet50_fpn"}  # torchvision initializes the pyramid in another way than the backbone
OTHER_INITS |= {"fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"}  # they start from trained backbones


@pytest.mark.parametrize("reference", [param for param in SOME if param.id not in OTHER_INITS])
def test_initial_weights_have_the_same_distribution(reference: Reference) -> None:
    torch.manual_seed(7)
    theirs, ours = reference.build(), build(reference.name)
    started = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        expected, got = parameter.detach(), started[key].detach()
        if expected.min() == expected.max():
            assert torch.equal(got, expected), key
        else:
            ratio = float(got.std() / expected.std())
            assert abs(ratio - 1) < max(0.05, 5 / got.numel() ** 0.5), (key, ratio)


# --- the files ------------------------------------------------------------------------------------

LIMITS = {"resnet50": 45, "densenet121": 45, "googlenet": 75, "inception_v3": 130}


@pytest.mark.parametrize("name", LIMITS)
def test_specs_are_short(name: str) -> None:
    assert len(_lines(shipped_specs()[name])) <= LIMITS[name]


@pytest.mark.parametrize("name", shipped_specs())
def test_headers_name_the_source(name: str) -> None:
    title, source, *_ = shipped_specs()[name].read_text("utf-8").splitlines()
    assert re.match(r"# \S", title)
    assert source.startswith("# source: ")


def _lines(path: Path) -> list[str]:
    """Return the lines of a spec and its blocks, without comments, blank lines and the recipe.

    None of these four specs calls a standard block.
    """
    text = path.read_text("utf-8")
    text = re.sub(r"^train \{.*?^\}\n?", "", text, flags=re.M | re.S)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for names, file in re.findall(r'^use (.*) from "(.*)"$', text, re.M):
        blocks = (shipped_folder() / file).read_text("utf-8")
        for name in names.split(", "):
            lines += _block(blocks, name)
    return lines


@cache
def _block(text: str, name: str) -> list[str]:
    found = re.search(rf"^block {name}\(.*?^}}$", text, re.M | re.S)
    assert found
    return found.group().splitlines()
