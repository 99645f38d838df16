"""On another device: no step mixes tensors of two devices.

A pretended device: tensors that say they are on a GPU, compute on the processor, and refuse to meet others. Not a test
on a GPU; nothing here was run on one.
"""

import pytest
import torch
from text_models import BOS, TINY, problem, text_model
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from dpfpl_client.learning.fast_tower import FastTextTower, MemoryPlan
from dpfpl_client.learning.gradients import label_against_rivals, loss_scales
from dpfpl_client.learning.plain_tower import PlainTextTower
from dpfpl_client.learning.text_tower import ClassTokens, SharedPrefixTextTower

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
TO_THE_HOST = ("tolist", "item", "__float__", "__int__", "__bool__", "cpu", "__repr__")


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendedGpu(TorchFunctionMode):
    """Tensors made for, or from tensors on, the GPU are on it; one that is not may not take part."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        inside = [each for each in tensors if isinstance(each, OnGpu)]
        if name == "__get__" and inside and function == torch.Tensor.device.__get__:
            return GPU
        asked = GPU in (*args, kwargs.get("device")) if not tensors or name == "to" else False
        if name in ("__getitem__", "__setitem__"):  # torch lets an index lie on the host
            tensors = [each for each in tree_flatten((args[0], args[2:]))[0] if isinstance(each, torch.Tensor)]
        if not asked and inside and any(not isinstance(each, OnGpu) and each.ndim for each in tensors):
            raise RuntimeError(f"{name}: tensors on two devices")
        args, kwargs = tree_map(lambda each: CPU if isinstance(each, torch.device) else each, (args, kwargs))
        result = function(*args, **kwargs)
        if (inside or asked) and name not in TO_THE_HOST:
            return tree_map(lambda each: each.as_subclass(OnGpu) if isinstance(each, torch.Tensor) else each, result)
        return result


def put(value):
    return tree_map(lambda each: each.as_subclass(OnGpu) if isinstance(each, torch.Tensor) else each, value)


def moved(model):
    """The model, its weights and buffers on the pretended GPU."""
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in list(store.items()):
                del store[name]
                object.__setattr__(module, name, None if tensor is None else put(tensor.detach()))
    return model


def on_gpu(tokens, lengths=True):
    return ClassTokens(put(tokens.ids), put(tokens.lengths) if lengths else tokens.lengths, tokens.bos_id)


def all_ways(tower, context, tokens, scales, directions):
    """Every function of a tower and its passes."""
    yield tower(context, tokens)
    text = tower.run(context, tokens)
    yield text.rank_one_pullback(scales, directions)
    yield text.pullback(scales[:, :, None] * directions[:, None])
    labels = scales.argmax(dim=1)
    few = label_against_rivals(loss_scales(text, 3.0, directions, labels), labels, 1)
    yield tower.run(context, tokens, singly=True).rank_one_pullback(few, directions, few=2)


def test_the_pretended_gpu_refuses_to_mix():
    with PretendedGpu():
        here, there = torch.ones(3), put(torch.ones(3))
        assert (there + 1).device == (there + torch.tensor(1.0)).device == torch.zeros(2, device=GPU).device == GPU
        assert here.to(GPU).device == torch.zeros_like(there).device == there.new_zeros(2).device == GPU
        assert here.device == torch.zeros(2).device == CPU
        for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: there.copy_(there + here)):
            with pytest.raises(RuntimeError, match="two devices"):
                mixed()


@pytest.mark.parametrize("plan", [MemoryPlan(), TINY], ids=["at once", "one at a time"])
@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_a_tower_and_its_gradients_stay_on_their_device(kind, plan):
    def tower(model):
        if kind == "plain":
            return PlainTextTower(model.text_model, model.text_projection)
        return FastTextTower(model.text_model, model.text_projection, BOS, plan=plan)

    context, tokens, scales, directions = problem(3, text_model(num_hidden_layers=3), classes=6, batch=4)
    here = list(all_ways(tower(text_model(num_hidden_layers=3)), context, tokens, scales, directions))
    model = moved(text_model(num_hidden_layers=3))
    with PretendedGpu():
        there = list(all_ways(tower(model), put(context), on_gpu(tokens), put(scales), put(directions)))
        assert all(each.device == GPU for each in there)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.as_subclass(torch.Tensor), a, rtol=1e-10, atol=1e-12)


def test_the_readable_tower_stays_on_its_device():
    context, tokens, *_ = problem(3, text_model(), classes=6)
    expected = SharedPrefixTextTower(text_model().text_model, text_model().text_projection)(context, tokens)
    model = moved(text_model())
    with PretendedGpu():
        found = SharedPrefixTextTower(model.text_model, model.text_projection)(put(context), on_gpu(tokens))
        assert found.device == GPU
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)
