"""A layer's weight and bias are ordinary tensors: filled, assigned, moved, loaded, changed."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

from minisgl._native import InputError
from minisgl.distributed import info
from minisgl.layers import BaseOP, LinearColParallelMerged, LinearQKVMerged, LinearRowParallel
from minisgl.layers.linear import _LinearTPImpl
from tests.python.layers.conftest import BecomeRank
from tests.python.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("become_rank")


def filled(outputs: int = 24, inputs: int = 40, has_bias: bool = True) -> LinearRowParallel:
    layer = LinearRowParallel(inputs, outputs, has_bias)
    layer.weight.normal_()
    if layer.bias is not None:
        layer.bias.normal_()
    return layer


def check(layer: LinearRowParallel, rows: int = 3) -> None:
    """Against torch, with the layer's tensors as they are now."""
    x = torch.randn(rows, layer.local_input_size, dtype=layer.weight.dtype)
    theirs = linear(
        x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float()
    )
    tolerance = 1e-5 if x.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(layer(x).float(), theirs, rtol=tolerance, atol=tolerance)


def test_tensors_are_made_as_torch_makes_them() -> None:
    layer = LinearRowParallel(8, 4, True)
    assert (layer.weight.dtype, layer.weight.device.type) == (torch.float32, "cpu")
    assert (layer.weight.shape, layer.bias.shape) == ((4, 8), (4,))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.inference_mode():
            layer = LinearQKVMerged(16, 8, 4, 2, False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (layer.weight.dtype, layer.weight.device.type) == (torch.bfloat16, "meta")
    assert (layer.full_output_size, layer.bias) == (64, None)
    assert not layer.weight.is_inference()


def test_a_rank_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_tp_info", None)
    with pytest.raises(RuntimeError, match="call set_tp_info first"):
        LinearRowParallel(8, 4, False)


def put(layer: LinearRowParallel, tensor: torch.Tensor) -> None:
    layer.weight = tensor


CHANGES: dict[str, Callable[[LinearRowParallel, torch.Tensor], object]] = {
    "nothing": lambda layer, new: None,
    "copy_": lambda layer, new: layer.weight.copy_(new),
    "one element": lambda layer, new: layer.weight[5, 7].add_(1),
    "view": lambda layer, new: layer.weight.view(-1)[300:].fill_(2),
    "assign": put,
    "assign a parameter": lambda layer, new: put(layer, torch.nn.Parameter(new)),
    "swap data": lambda layer, new: setattr(layer.weight, "data", new),
    "fill through data": lambda layer, new: layer.weight.data.copy_(new),
    "fill through numpy": lambda layer, new: layer.weight.numpy().fill(3),
    "load": lambda layer, new: layer.load_state_dict({"weight": new, "bias": new[:, 0]}),
    "bias": lambda layer, new: layer.bias.add_(1),
    "bias through data": lambda layer, new: layer.bias.data.add_(1),
    "no bias": lambda layer, new: setattr(layer, "bias", None),
    "to bfloat16": lambda layer, new: layer.to(torch.bfloat16),
    "to float16": lambda layer, new: layer.to(dtype=torch.float16),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str, mode: Callable[[], torch.no_grad]) -> None:
    layer = filled()
    with mode():
        check(layer)
        CHANGES[change](layer, torch.randn(24, 40))
        check(layer)
        CHANGES[change](layer, torch.randn(24, 40))
        check(layer)


def test_a_tensor_of_inference_mode_is_taken() -> None:
    layer = filled()
    with torch.inference_mode():
        layer.weight = torch.randn(24, 40)
    assert layer.weight.is_inference()
    check(layer)
    with torch.inference_mode():
        layer.weight.normal_()
    check(layer)


def test_memory_that_is_used_again_is_looked_at_again() -> None:
    layer, x = filled(), torch.randn(1, 40)
    for _ in range(20):  # new tensors in the memory of old ones
        layer.weight = None
        layer.weight = torch.randn(24, 40)
        torch.testing.assert_close(
            layer(x), linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5
        )


def test_a_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # What isn't counted, and lies between the elements that are looked at, shows the packed form.
    layer = filled(512, 512, has_bias=False)
    x = torch.eye(512)
    before = layer(x).clone()
    layer.weight.data[2, 2] += 1
    assert torch.equal(layer(x), before)
    layer.weight.mul_(1)
    assert torch.equal(layer(x), layer.weight.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(40,), (1, 40), (7, 40), (2, 3, 40), (0, 40), (2, 0, 40), (70, 40)]
)
def test_inputs_have_any_leading_dimensions(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer = filled().to(dtype)
    x = torch.randn(shape).to(dtype)
    y = layer(x)
    theirs = linear(x.float(), layer.weight.float(), layer.bias.float())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), theirs, rtol=tolerance, atol=tolerance)


def test_inputs_have_any_strides() -> None:
    layer = filled()
    for x in (torch.randn(40, 5).t(), torch.randn(5, 80)[:, ::2], torch.randn(40).expand(5, 40)):
        assert torch.equal(layer(x), layer(x.contiguous()))
    unaligned = torch.randn(201)[1:].view(5, 40)
    assert torch.equal(layer(unaligned), layer(unaligned.clone()))


def test_threads_change_nothing_and_may_call_together() -> None:
    layer, other = filled(300, 400), filled(500, 400)
    xs = [torch.randn(rows, 400) for rows in (1, 2, 9, 33)]
    wanted = [(layer(x), other(x)) for x in xs]
    layer.weight.mul_(1)  # both are packed anew, by whoever comes first
    other.weight.mul_(1)
    wrong: list[str] = []

    def work(index: int) -> None:
        torch.set_num_threads(1 + index % 3)
        for _ in range(30):
            for x, (a, b) in zip(xs, wanted, strict=True):
                if not (torch.equal(layer(x), a) and torch.equal(other(x), b)):
                    wrong.append(f"{tuple(x.shape)}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    before = torch.get_num_threads()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_computes_while_its_parent_does() -> None:
    layer, large, x = filled(), filled(1024, 1024), torch.randn(64, 1024)
    wanted, over = layer(x[:, :40]), threading.Event()

    def compute() -> None:
        while not over.is_set():
            large(x)

    thread = threading.Thread(target=compute)
    thread.start()
    children = []
    for _ in range(4):
        if child := os.fork():
            children.append(child)
        else:
            os._exit(0 if torch.equal(layer(x[:, :40]), wanted) else 1)
    try:
        until = time.monotonic() + PATIENCE
        while children and time.monotonic() < until:
            child, status = os.waitpid(children[0], os.WNOHANG)
            if child:
                assert status == 0
                children.pop(0)
            time.sleep(0.01)
        assert not children
    finally:
        over.set()
        thread.join()
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_copies_are_layers() -> None:
    layer, x = filled(), torch.randn(2, 40)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        other.weight.zero_()
        assert not torch.equal(other(x), layer(x))


def test_full_tensors_are_loaded_in_all_their_forms(become_rank: BecomeRank) -> None:
    query, key, value = torch.randn(64, 10), torch.randn(16, 10), torch.randn(16, 10)
    for rank in range(4):  # eight query heads of 8, two KV heads, each of them on two ranks
        become_rank(rank, 4)
        mine = slice(rank // 2 * 8, rank // 2 * 8 + 8)
        wanted = torch.cat([query.chunk(4)[rank], key[mine], value[mine]])
        for weight in (torch.cat([query, key, value]), [query, key, value], (query, key, value)):
            layer = LinearQKVMerged(10, 8, 8, 2, False)
            layer.load_state_dict({"weight": weight})
            assert torch.equal(layer.weight, wanted)
        # A checkpoint's own names, into a layer that has no memory yet.
        with torch.device("meta"):
            block = Attention()
        names = [f"layers.0.attention.{name}_proj.weight" for name in "qkv"]
        block.load_state_dict(dict(zip(names, (query, key, value), strict=True)))
        assert torch.equal(block.layers[0].attention.qkv_proj.weight, wanted)
        assert list(block.state_dict()) == ["layers.0.attention.qkv_proj.weight"]


def test_layers_of_weights_have_their_dtype_and_no_part_of_their_memory() -> None:
    weights = [torch.randn(4, 6).bfloat16(), torch.randn(8, 6).bfloat16()]
    layer = LinearColParallelMerged.from_weights(weights, [torch.ones(4), None])
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(layer.bias, torch.tensor([1.0] * 4 + [0.0] * 8).bfloat16())
    merged = torch.cat(weights)
    weights[0].zero_()
    assert torch.equal(layer.weight, merged)
    assert LinearRowParallel.from_weights(merged).bias is None


class Named(BaseOP):
    def __init__(self, **members: object) -> None:
        vars(self).update(members)


class Attention(BaseOP):
    def __init__(self) -> None:
        layer = Named(qkv_proj=LinearQKVMerged(10, 8, 8, 2, False))
        self.layers = [Named(attention=layer)]


def test_a_layer_of_ones_own_need_not_say_how_it_is_cut(become_rank: BecomeRank) -> None:
    become_rank(1, 2)
    for full_output_size in (4, 8):  # on every rank the same, cut
        layer = _LinearTPImpl(6, full_output_size, 6, 4, True)
        own = {"weight": torch.randn(4, 6), "bias": torch.randn(4)}
        layer.load_state_dict(own)
        x = torch.randn(3, 6)
        torch.testing.assert_close(layer(x), linear(x, own["weight"], own["bias"]))
        if full_output_size == 4:
            assert torch.equal(layer.full_state_dict()["weight"], own["weight"])
            continue
        with pytest.raises(InputError, match=r"_LinearTPImpl\(6 -> 8, 6 -> 4 on rank 1 of 2.*cut"):
            layer.full_state_dict()


class Scaled(LinearRowParallel):
    def __init__(self, size: int) -> None:
        super().__init__(size, size, has_bias=False)
        self.scale = torch.ones(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale


def test_a_class_over_a_layer_has_its_own_forward_and_tensors(become_rank: BecomeRank) -> None:
    scaled = Scaled(8)
    state = {"weight": torch.randn(8, 8), "scale": torch.randn(8)}
    scaled.load_state_dict(state)
    x = torch.randn(3, 8)
    torch.testing.assert_close(scaled(x), linear(x, state["weight"]) * state["scale"])
    become_rank(1, 2)
    cut = Scaled(8)
    cut.load_state_dict(state)
    assert torch.equal(cut.weight, state["weight"][:, 4:])
    assert torch.equal(cut.scale, state["scale"])
    assert cut._gather_tensor("scale") is cut.scale
    with pytest.raises(InputError, match=r"^scale must be \[8\], got \[4\]$"):
        cut.load_state_dict({**state, "scale": torch.ones(4)})


def test_an_operation_has_tensors_of_its_own() -> None:
    norm = Named(
        weight=torch.ones(4), steps=torch.zeros(1, dtype=torch.int64), _hidden=torch.ones(1)
    )
    block = Named(norm=norm, eps=1e-5)
    block.load_state_dict(
        {"x.norm.weight": torch.arange(4.0), "x.norm.steps": torch.ones(1)}, prefix="x"
    )
    assert torch.equal(norm.weight, torch.arange(4.0))
    assert block.to(torch.float16) is block
    assert {name: t.dtype for name, t in block.state_dict().items()} == {
        "norm.weight": torch.float16,
        "norm.steps": torch.int64,
    }


def test_operations_may_share_tensors_and_stand_in_dicts() -> None:
    first, second = filled(8, 8), filled(8, 8)
    second.weight = first.weight
    block = Named(experts={"first": first, "second": second}, tied=first)
    names = ["experts.first.weight", "experts.first.bias", "experts.second.weight"]
    names += ["experts.second.bias", "tied.weight", "tied.bias"]
    assert list(block.state_dict()) == names
    block.to(torch.bfloat16)
    assert first.weight is second.weight
    assert first.weight.dtype == first.bias.dtype == second.bias.dtype == torch.bfloat16
    block.load_state_dict({name: torch.ones_like(t) for name, t in block.state_dict().items()})
    assert second.bias.tolist() == [1.0] * 8


def test_state_dict_has_the_tensors_themselves() -> None:
    layer = filled()
    own = layer.state_dict(prefix="x")
    assert own["x.weight"] is layer.weight
    assert own["x.bias"] is layer.bias
    assert layer.full_state_dict()["weight"] is layer.weight  # one rank has it all


def test_gradients_are_refused_where_they_are_recorded() -> None:
    layer, x = filled(), torch.randn(2, 40, requires_grad=True)
    with pytest.raises(InputError, match="input requires a gradient, and these layers have none"):
        layer(x)
    with torch.no_grad():
        y = layer(x)
    assert not y.requires_grad
    layer.weight = torch.nn.Parameter(layer.weight)
    with pytest.raises(InputError, match="weight requires a gradient"):
        layer(x.detach())
    with torch.inference_mode():
        assert torch.equal(layer(x), y)


def expect_refusals(refusals: list[tuple[Callable[[], object], str]]) -> None:
    for attempt, message in refusals:
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value) == message


def test_sizes_that_do_not_fit_are_named(become_rank: BecomeRank) -> None:
    become_rank(0, 2)
    merged = torch.zeros(12, 6)
    refusals: list[tuple[Callable[[], object], str]] = [
        (
            lambda: LinearColParallelMerged(6, [4, 9], False),
            "output_sizes[1] is 9, which can't be split over 2 ranks",
        ),
        (lambda: LinearColParallelMerged(6, [], False), "output_sizes must have at least one size"),
        (lambda: LinearColParallelMerged(0, [4], False), "input_size must be positive, got 0"),
        (
            lambda: LinearColParallelMerged(6, [2**70], False),
            "output_sizes[0] must be at most 1099511627776, got 1180591620717411303424",
        ),
        (
            lambda: LinearRowParallel(9, 4, False),
            "input_size is 9, which can't be split over 2 ranks",
        ),
        (
            lambda: LinearQKVMerged(8, 4, 9, 3, False),
            "num_qo_heads is 9, which can't be split over 2 ranks",
        ),
        (
            lambda: LinearQKVMerged(8, 4, 6, 3, False),
            "num_kv_heads is 3, which can't be split over 2 ranks",
        ),
        (
            lambda: LinearQKVMerged(8, 4, 6, 4, False),
            "num_qo_heads must be a multiple of num_kv_heads, got 6 and 4",
        ),
        (
            lambda: LinearColParallelMerged.from_weights([torch.zeros(4, 6), torch.zeros(4, 8)]),
            "weights of one layer must have the same number of columns and one dtype, "
            "got [4, 6] of torch.float32 and [4, 8] of torch.float32",
        ),
        (
            lambda: LinearColParallelMerged.from_weights([torch.zeros(4)]),
            "a weight must have two dimensions, got [4]",
        ),
        (
            lambda: LinearColParallelMerged.from_weights([torch.zeros(4, 6)], [torch.zeros(3)]),
            "bias must be the whole [4]; got [3]",
        ),
        (
            lambda: LinearColParallelMerged.from_weights([torch.zeros(4, 6)], [None, None]),
            "1 weights, 2 biases",
        ),
        (
            lambda: LinearQKVMerged.from_weights((merged, merged, torch.zeros(3, 6)), head_dim=3),
            "weight must be the whole [36, 6], or its parts [12, 6], [12, 6], [12, 6]; "
            "got [12, 6], [12, 6], [3, 6]",
        ),
        (
            lambda: LinearQKVMerged.from_weights((merged, merged, merged), head_dim=5),
            "weights[0] has 12 rows, no multiple of head_dim 5",
        ),
    ]
    expect_refusals(refusals)


def test_tensors_that_do_not_fit_are_named(become_rank: BecomeRank) -> None:
    layer = filled()
    become_rank(0, 2)
    column = LinearColParallelMerged(6, [4, 8], False)
    merged = torch.zeros(12, 6)
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: column.load_state_dict({}), "the state dict has no weight"),
        (
            lambda: column.load_state_dict({"weight": merged, "gate.weight": merged}),
            "the state dict has names that nothing here has: gate.weight",
        ),
        (
            lambda: column.load_state_dict({"weight": merged[:6]}),
            "weight must be the whole [12, 6], or its parts [4, 6], [8, 6]; got [6, 6]",
        ),
        (
            lambda: column.load_state_dict({"weight": [merged, merged]}),
            "weight must be the whole [12, 6], or its parts [4, 6], [8, 6]; got [12, 6], [12, 6]",
        ),
        (
            lambda: layer(torch.zeros(2, 5)),
            "input must have 40 features in its last dimension, got [2, 5]",
        ),
        (
            lambda: layer(torch.tensor(1.0)),
            "input must have 40 features in its last dimension, got []",
        ),
        (
            lambda: layer(torch.zeros(2, 40, dtype=torch.float16)),
            "input is float16, the layer's weight float32",
        ),
        (
            lambda: layer(torch.zeros(2, 40, dtype=torch.int64)),
            "input must be float32, float16 or bfloat16, got int64",
        ),
    ]
    expect_refusals(refusals)


def test_a_tensor_without_memory_is_named() -> None:
    with pytest.raises(InputError, match="^input can't be read where it is: .*meta"):
        filled()(torch.zeros(2, 40, device="meta"))


def test_tensors_that_do_not_fit_the_layer_are_named() -> None:
    x = torch.zeros(1, 40)
    refusals: list[tuple[str, torch.Tensor, str]] = [
        ("weight", torch.zeros(40, 24), "weight must be [24, 40], got [40, 24]"),
        (
            "weight",
            torch.zeros(40, 24).t(),
            "weight must be contiguous, got [24, 40] with strides [1, 24]",
        ),
        (
            "weight",
            torch.zeros(24, 40, dtype=torch.int8),
            "weight must be float32, float16 or bfloat16, got int8",
        ),
        ("bias", torch.zeros(23), "bias must be [24], got [23]"),
        (
            "bias",
            torch.zeros(24, dtype=torch.bfloat16),
            "bias is bfloat16, the layer's weight float32",
        ),
        ("bias", torch.zeros(48)[::2], "bias must be contiguous, got [24] with strides [2]"),
    ]
    for name, tensor, message in refusals:
        layer = filled()
        setattr(layer, name, tensor)
        with pytest.raises(InputError) as error:
            layer(x)
        assert str(error.value) == message


def test_what_is_no_tensor_is_named() -> None:
    layer = filled()
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: layer([1.0] * 40), "input must be a torch.Tensor, got list"),
        (lambda: layer(None), "input must be a torch.Tensor, got NoneType"),
        (
            lambda: layer.load_state_dict({"weight": 3, "bias": 4}),
            "weight must be a torch.Tensor or a list of them, got int",
        ),
        (
            lambda: layer.load_state_dict({"weight": [3], "bias": 4}),
            "weight must be a torch.Tensor or a list of them, got int",
        ),
        (lambda: LinearRowParallel(8.0, 4, False), "input_size must be an int, got float"),
        (lambda: LinearColParallelMerged(8, 4, False), "output_sizes must be a list, got int"),
        (
            lambda: LinearColParallelMerged(8, (size for size in (4, 4)), False),
            "output_sizes must be a list, got generator",
        ),
        (lambda: LinearRowParallel.from_weights("x"), "a weight must be a torch.Tensor, got str"),
    ]
    for attempt, message in refusals:
        with pytest.raises(TypeError) as error:
            attempt()
        assert str(error.value) == message


def test_nothing_is_changed_by_what_is_refused() -> None:
    layer = filled()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(InputError):
        layer.load_state_dict({"weight": torch.zeros(24, 40), "bias": torch.zeros(3)})
    assert all(torch.equal(before[name], layer.state_dict()[name]) for name in before)


def test_tensors_of_an_older_torch_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # Types without a table of functions: here, a subclass that hides it.
    class Plain(torch.Tensor):
        __dlpack_c_exchange_api__ = None

    layer, x = filled(), torch.randn(2, 40)
    wanted = layer(x)
    layer.weight, layer.bias = layer.weight.as_subclass(Plain), layer.bias.as_subclass(Plain)
    assert torch.equal(layer(x.as_subclass(Plain)), wanted)
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    torch.testing.assert_close(layer(x), 2 * wanted)
