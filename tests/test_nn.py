"""The drop-in layers of dynprune.nn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dynprune
import dynprune.nn as dnn
from tests.models.masked import Reader, masked_dense, relative_error

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(13, 37), (5, 13)),
    "linear without bias": (lambda: nn.Linear(13, 37, bias=False), (5, 13)),
    "linear on three dimensions": (lambda: nn.Linear(13, 37), (2, 3, 13)),
    "linear on one dimension": (lambda: nn.Linear(13, 37), (13,)),
    "linear on no rows": (lambda: nn.Linear(13, 37), (0, 13)),
    "linear in float64": (lambda: nn.Linear(13, 37).double(), (5, 13)),
    "conv2d": (lambda: nn.Conv2d(3, 19, 3, 2, 1), (2, 3, 9, 7)),
    "conv2d without bias": (lambda: nn.Conv2d(3, 19, 5, padding=2, bias=False), (2, 3, 4, 3)),
    "conv2d dilated": (lambda: nn.Conv2d(3, 19, 3, dilation=2, padding="same"), (2, 3, 9, 7)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 9, 7)),
    "conv2d in groups in float64": (lambda: nn.Conv2d(4, 8, 3, groups=2).double(), (2, 4, 9, 7)),
    "conv2d depthwise": (lambda: nn.Conv2d(19, 19, 3, 2, 1, groups=19), (2, 19, 9, 7)),
    "conv2d depthwise, two each": (lambda: nn.Conv2d(5, 10, 3, bias=False, groups=5), (2, 5, 9, 7)),
    "conv1d": (lambda: nn.Conv1d(3, 19, 3, 2, 1), (2, 3, 17)),
    "conv1d without bias": (lambda: nn.Conv1d(3, 19, 5, padding="same", bias=False), (2, 3, 4)),
    "conv1d dilated": (lambda: nn.Conv1d(3, 19, 3, padding="valid", dilation=2), (2, 3, 9)),
    "conv1d in groups": (lambda: nn.Conv1d(6, 9, 3, groups=3), (2, 6, 9)),
    "conv1d depthwise": (lambda: nn.Conv1d(19, 19, 4, padding=1, groups=19), (2, 19, 9)),
    "conv1d in float64": (lambda: nn.Conv1d(3, 19, 3).double(), (2, 3, 9)),
    "circular conv1d": (lambda: nn.Conv1d(3, 8, 3, padding=1, padding_mode="circular"), (2, 3, 9)),
    "conv1d of one sequence": (lambda: nn.Conv1d(3, 8, 3), (3, 9)),
    "circular conv2d": (lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (2, 3, 9, 7)),
    "conv2d of one image": (lambda: nn.Conv2d(3, 8, 3), (3, 9, 7)),
}


def ours_of(dense: nn.Module) -> dnn.Linear | dnn.Conv1d | dnn.Conv2d:
    if isinstance(dense, nn.Linear):
        return dnn.Linear.from_dense(dense)
    return (dnn.Conv1d if isinstance(dense, nn.Conv1d) else dnn.Conv2d).from_dense(dense)


def make(name: str) -> tuple[nn.Module, dnn.Linear | dnn.Conv1d | dnn.Conv2d, Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    dense = build().eval()
    return dense, ours_of(dense), torch.randn(shape, dtype=dense.weight.dtype)


def with_constants(dense: Tensor, mask: Tensor, constants: Tensor, dim: int) -> Tensor:
    shape = [1] * dense.dim()
    shape[dim] = -1
    return torch.where(mask.view(shape), dense, constants.to(dense.dtype).view(shape))


PRUNABLE = [name for name in LAYERS if not name.startswith(("circular", "conv2d of one", "conv1d of one"))]


@pytest.mark.parametrize("name", LAYERS)
def test_same_outputs(name: str) -> None:
    dense, ours, x = make(name)
    with torch.no_grad():
        assert relative_error(ours(x), dense(x).double()) <= 1e-5
        assert ours(x).dtype == x.dtype


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", PRUNABLE)
def test_set_active(name: str, share: float) -> None:
    dense, ours, x = make(name)
    units, dim = dense.weight.shape[0], -1 if isinstance(dense, nn.Linear) else 1
    mask, constants = torch.rand(units) < share, torch.randn(units)
    with torch.no_grad():
        ours.set_active(mask, constants)
        assert torch.equal(ours.active, mask)
        assert relative_error(ours(x), with_constants(dense(x), mask, constants, dim).double()) <= 1e-5
        ours.set_active(mask)
        assert relative_error(ours(x), with_constants(dense(x), mask, constants * 0, dim).double()) <= 1e-5
        ours.set_active(torch.ones(units, dtype=torch.bool))
        assert relative_error(ours(x), dense(x).double()) <= 1e-5


@pytest.mark.parametrize("name", ["linear", "conv2d", "linear without bias", "conv1d", "conv2d in groups"])
def test_parameters_are_shared_and_trained(name: str) -> None:
    dense, ours, x = make(name)
    assert ours.weight is dense.weight and ours.bias is dense.bias
    assert ours.state_dict().keys() == dense.state_dict().keys()
    ours.set_active(torch.zeros(dense.weight.shape[0], dtype=torch.bool))
    expected = torch.autograd.grad(dense(x).square().sum(), dense.weight)[0]
    for mode in (True, False):  # eval mode: a parameter asks for a gradient
        actual = torch.autograd.grad(ours.train(mode)(x).square().sum(), dense.weight)[0]
        torch.testing.assert_close(actual, expected)
    frozen = copy.deepcopy(dense).requires_grad_(False)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ours_of(frozen)(x).sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(dense(x).sum(), x)[0])


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv1d", "conv2d depthwise"])
def test_weights_changed_in_place_or_replaced(name: str) -> None:
    dense, ours, x = make(name)
    with torch.no_grad():
        ours(x)
        dense.weight.mul_(2)
        assert relative_error(ours(x), dense(x).double()) <= 1e-5
        dense.bias.add_(1)
        assert relative_error(ours(x), dense(x).double()) <= 1e-5
        ours.load_state_dict({k: v + 1 for k, v in dense.state_dict().items()})
        assert relative_error(ours(x), dense(x).double()) <= 1e-5
        ours.bias = nn.Parameter(torch.zeros_like(ours.bias))
        dense.bias.zero_()
        assert relative_error(ours(x), dense(x).double()) <= 1e-5
        twin = copy.deepcopy(ours)
        twin.set_active(torch.zeros(len(dense.bias), dtype=torch.bool))
        assert relative_error(ours(x), dense(x).double()) <= 1e-5


@pytest.mark.parametrize("what", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_parameters_replaced(name: str, what: str) -> None:
    dense, ours, x = make(name)
    with torch.no_grad():
        for value in (2.0, 3.0):  # parameters that nobody changed in place
            for module in (dense, ours):
                setattr(module, what, nn.Parameter(torch.full(getattr(dense, what).shape, value)))
            assert relative_error(ours(x), dense(x).double()) <= 1e-5


def test_settings_are_taken_over() -> None:
    dense = nn.Conv2d(
        4, 8, (3, 5), (2, 1), (1, 2), (1, 2), groups=2, bias=False, padding_mode="reflect"
    ).eval()
    ours = dnn.Conv2d.from_dense(dense)
    assert repr(ours).replace("Conv2d", "") == repr(dense).replace("Conv2d", "")
    assert not ours.training
    assert dnn.Linear.from_dense(nn.Linear(2, 3).train()).training
    assert dnn.Linear(2, 3, bias=False).bias is None


def frozen_lstm() -> dnn.LSTM:
    return dnn.LSTM(3, 4).eval().requires_grad_(False)


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "mask length": (
        lambda: dnn.Linear(2, 3).set_active(torch.ones(2, dtype=torch.bool)), ValueError,
        r"set_active: expected a BoolTensor \[3\], got torch.bool \[2\]",
    ),
    "mask dtype": (
        lambda: dnn.Conv2d(2, 3, 1).set_active(torch.ones(3)), ValueError,
        r"set_active: expected a BoolTensor \[3\], got torch.float32 \[3\]",
    ),
    "mask type": (lambda: dnn.Linear(2, 3).set_active([True] * 3), ValueError, r"BoolTensor \[3\], got list"),
    "constants": (
        lambda: dnn.Linear(2, 3).set_active(torch.ones(3, dtype=torch.bool), torch.ones(2)), ValueError,
        r"set_active: expected constants \[3\], got \[2\]",
    ),
    "not a linear": (
        lambda: dnn.Linear.from_dense(nn.Conv2d(2, 3, 1)), ValueError,
        "Linear.from_dense: expected nn.Linear, got Conv2d",
    ),
    "not a conv2d": (
        lambda: dnn.Conv2d.from_dense(nn.Linear(2, 3)), ValueError,
        "Conv2d.from_dense: expected nn.Conv2d, got Linear",
    ),
    "not a conv1d": (
        lambda: dnn.Conv1d.from_dense(nn.Conv2d(2, 3, 1)), ValueError,
        "Conv1d.from_dense: expected nn.Conv1d, got Conv2d",
    ),
    "circular": (
        lambda: dnn.Conv2d(2, 4, 1, padding_mode="circular").set_active(torch.ones(4, dtype=torch.bool)),
        NotImplementedError,
        r"Conv2d.set_active: expected zero padding .*, got padding=\(0, 0\), padding_mode='circular'",
    ),
    "uneven": (
        lambda: dnn.Conv1d(2, 4, 2, padding="same").set_active(torch.ones(4, dtype=torch.bool)),
        NotImplementedError, "Conv1d.set_active: expected zero padding of equal ends, got padding='same'",
    ),
    "lstm projection": (lambda: dnn.LSTM(3, 4, proj_size=2), ValueError, "LSTM: expected proj_size 0, got 2"),
    "lstm from a layer": (
        lambda: dnn.LSTM.from_dense(nn.GRU(3, 4)), ValueError,  # type: ignore[arg-type]
        "LSTM.from_dense: expected nn.LSTM, got GRU",
    ),
    "lstm direction": (
        lambda: dnn.LSTM(3, 4).set_active("l1", torch.ones(4, dtype=torch.bool)), ValueError,
        "set_active: expected one of l0, got 'l1'",
    ),
    "lstm mask": (
        lambda: dnn.LSTM(3, 4).set_active("l0", torch.ones(3, dtype=torch.bool)), ValueError,
        r"set_active: expected a BoolTensor \[4\], got torch.bool \[3\]",
    ),
    "lstm features": (
        lambda: frozen_lstm()(torch.randn(5, 2, 4)), ValueError,
        "LSTM: expected 3 features, got 4",
    ),
    "lstm states": (
        lambda: frozen_lstm()(torch.randn(5, 2, 3), (torch.zeros(1, 1, 4),) * 2),
        ValueError, r"LSTM: expected a hidden state \[1, 2, 4\], got \[1, 1, 4\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input(case: tuple[Callable[[], object], type[Exception], str]) -> None:
    with pytest.raises(case[1], match=case[2]):
        case[0]()


def test_a_failed_set_active_changes_nothing() -> None:
    layer, x = dnn.Linear(4, 3).eval().requires_grad_(False), torch.randn(2, 4)
    layer.set_active(torch.tensor([True, False, True]), torch.ones(3))
    before = layer(x)
    with pytest.raises(ValueError, match="set_active"):
        layer.set_active(torch.ones(3, dtype=torch.bool), torch.ones(9))
    assert torch.equal(layer(x), before)
    assert layer.active.tolist() == [True, False, True]


def test_inside_accelerate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        dnn.Conv2d(2, 17, 3, padding=1), nn.ReLU(), nn.Conv2d(17, 9, 3, padding=1), nn.ReLU(), nn.Flatten(),
        dnn.Linear(180, 12), nn.ReLU(), nn.Linear(12, 3),
    ).eval()  # fmt: skip
    x = torch.randn(3, 2, 5, 4)
    fast = dynprune.accelerate(model, x)
    fast.calibrate(x)
    fast.freeze()
    for name, group in fast.groups.items():
        fast.set_active(name, torch.rand(group.units) < 0.5)
    readers = [Reader("2", "0"), Reader("5", "2", pixels=20), Reader("7", "5")]
    dense = nn.Sequential(*(model[i] for i in range(8)))
    dense[0], dense[5] = plain(model[0]), plain(model[5])
    expected = masked_dense(dense, fast, readers, x)
    assert relative_error(fast(x), expected) <= 1e-5
    assert relative_error(fast.materialize()(x), expected) <= 1e-5


def plain(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(layer.in_features, layer.out_features)
    else:
        new = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)
    new.load_state_dict(layer.state_dict())
    return new


def test_a_set_of_its_own_inside_accelerate_is_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(dnn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[0].set_active(torch.arange(12) % 2 == 0, torch.ones(12))
    x = torch.randn(5, 6)
    with torch.no_grad():
        expected = model(x)
    fast = dynprune.accelerate(model, x)
    assert list(fast.groups) == ["2"]
    assert "dense: an active set of its own" in fast.explain()
    torch.testing.assert_close(fast(x), expected)


NARROW = ["linear", "linear without bias", "conv2d", "conv1d", "conv2d in groups", "conv2d depthwise"]


@pytest.mark.parametrize("name", NARROW)
def test_in_bfloat16(name: str) -> None:
    dense, _, x = make(name)
    dense, x = dense.bfloat16(), x.bfloat16()
    ours, expected = ours_of(dense), copy.deepcopy(dense).double()(x.double()).detach()
    with torch.no_grad():
        assert ours(x).dtype == torch.bfloat16
        assert relative_error(ours(x), expected) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("name", NARROW)
def test_autocast(name: str, share: float, dtype: torch.dtype) -> None:
    """Inside the region the layer runs in its dtype, as PyTorch's own does; outside as ever."""
    dense, ours, x = make(name)
    units, dim = dense.weight.shape[0], -1 if isinstance(dense, nn.Linear) else 1
    mask, constants = torch.rand(units) < share, torch.randn(units)
    ours.set_active(mask, constants)
    with torch.no_grad():
        expected = with_constants(dense(x), mask, constants, dim).double()
        with torch.autocast("cpu", dtype=dtype):
            for given in (x, x.to(dtype)):
                assert ours(given).dtype == dense(given).dtype == dtype
                assert relative_error(ours(given), expected) <= 1e-2
        assert ours(x).dtype == torch.float32
        assert relative_error(ours(x), expected) <= 1e-5
        dense.weight.mul_(2)
        with torch.autocast("cpu", dtype=dtype):
            expected = with_constants(dense(x), mask, constants, dim).double()
            assert relative_error(ours(x), expected) <= 1e-2
