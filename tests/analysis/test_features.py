"""Features by name."""

from __future__ import annotations

import pytest

import cnnspec
from cnnspec.analysis.features import tap

torch = pytest.importorskip("torch")


def test_features_are_those_of_the_whole_network() -> None:
    torch.manual_seed(0)
    whole = cnnspec.build("resnet20").eval()
    paths = ["stage1", "stage3.0.net.3", "stage2"]
    tapped = cnnspec.build("resnet20", outputs=paths).eval()
    own = whole.state_dict()
    tapped.load_state_dict({key: own[key] for key in tapped.state_dict()})
    seen: dict[str, torch.Tensor] = {}
    for path, last in {"stage1": "stage1.2.0", "stage3.0.net.3": "stage3.0.net.3", "stage2": "stage2.2.0"}.items():
        whole.get_submodule(last).register_forward_hook(lambda m, i, o, path=path: seen.update({path: o.clone()}))
    x = torch.randn(2, 3, 32, 32)
    whole(x)
    given = tapped(x)
    assert list(given) == paths
    for path in paths:
        assert torch.equal(given[path], seen[path])


def test_nothing_behind_the_last_feature_is_there() -> None:
    tapped = cnnspec.build("resnet20", outputs=["stage2"])
    assert {key.split(".")[0] for key in tapped.state_dict()} == {"stem", "stage1", "stage2"}
    assert tapped.graph.output_shape == (32, 16, 16)


def test_channels_and_reduction() -> None:
    graph = cnnspec.load("resnet50")
    feature = graph.feature("layer3")
    assert (feature.channels, feature.shape, feature.reduction) == (1024, (1024, 14, 14), (16, 16))
    tapped = tap(graph, ["layer2", "layer4"])
    assert [(f.path, f.channels, f.reduction) for f in tapped.features] == [
        ("layer2", 512, (8, 8)),
        ("layer4", 2048, (32, 32)),
    ]


def test_every_feature_has_the_shape_that_its_module_gives() -> None:
    graph = cnnspec.load("googlenet_cifar")
    paths = [path for path in graph.paths if path.count(".") < 2]
    given = cnnspec.build(graph, outputs=paths).eval()(torch.zeros(1, 3, 32, 32))
    assert {path: tuple(y.shape[1:]) for path, y in given.items()} == {
        path: graph.feature(path).shape for path in paths
    }


@pytest.mark.parametrize("outputs", [["stage9"], ["stage1", "stage1.0.nett"], [""]])
def test_unknown_modules(outputs: list[str]) -> None:
    with pytest.raises(cnnspec.CnnspecError) as caught:
        cnnspec.build("resnet20", outputs=outputs)
    assert caught.value.diagnostics[0].code == "E0219"


def test_auxiliary_heads_have_no_features() -> None:
    with pytest.raises(cnnspec.CnnspecError, match="auxiliary"):
        cnnspec.build("googlenet", outputs=["aux1"])


def test_taps_take_weights(tmp_path: object) -> None:
    whole = cnnspec.build("resnet20")
    file = f"{tmp_path}/all.pt"
    torch.save(whole.state_dict(), file)
    tapped = cnnspec.build("resnet20", weights=file, outputs=["stage1"])
    assert torch.equal(tapped.state_dict()["stem.0.weight"], whole.state_dict()["stem.0.weight"])


def test_published_weights_come_from_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    models = pytest.importorskip("torchvision").models
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    reference = models.resnet18()
    url = models.ResNet18_Weights.DEFAULT.url
    folder = torch.hub.get_dir() + "/checkpoints"
    import os

    os.makedirs(folder)
    torch.save(reference.state_dict(), f"{folder}/{url.rpartition('/')[2]}")  # as if it had been downloaded before
    module = cnnspec.build("resnet18", weights="torchvision:DEFAULT")
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), reference.state_dict().values(), strict=True)
    )
    for wrong in ("torchvision:IMAGENET1K_V9", "torchvision:"):
        with pytest.raises(cnnspec.CnnspecError) as caught:
            cnnspec.build("resnet18", weights=wrong)
        assert caught.value.diagnostics[0].code == "E0505"
        assert "torchvision:DEFAULT" not in caught.value.diagnostics[0].message
    with pytest.raises(cnnspec.CnnspecError, match="no pretrained weights for `resnet20`"):
        cnnspec.build("resnet20", weights="torchvision:DEFAULT")
