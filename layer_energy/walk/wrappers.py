"""What frameworks put around modules, and how a copy is made without it.

Classes are told by their qualified names: importing the packages that define them takes seconds,
and a model can only be wrapped by one that is imported already.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

Memo = dict[int, Any]
"""``id`` of an object → its copy, as ``copy.deepcopy`` keeps it."""

_COMPILED = "compiled: priced as eager; fusion is not modelled (torch.compile)"
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod", _COMPILED),
    "torch.nn.parallel.data_parallel.DataParallel": (
        "module",
        "DataParallel was taken off: priced as one replica",
    ),
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        "module",
        "DistributedDataParallel was taken off: priced as one replica, without communication",
    ),
    "torch.optim.swa_utils.AveragedModel": (
        "module",
        "AveragedModel was taken off: priced as the model that it averages",
    ),
    "lightning.fabric.wrappers._FabricModule": (
        "_forward_module",
        "Lightning Fabric was taken off: priced in the parameters' own dtype",
    ),
}
"""Class → attribute that holds the wrapped module, and the sentence to print."""

_FLAT = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"
_SHARDED = "torch.distributed.fsdp.FSDPModule"
_FSDP = (
    "FSDP was taken off: priced as one whole replica in the parameters' own dtype, without "
    "communication"
)


def present(modules: list[nn.Module]) -> bool:
    """Whether any of these modules is a wrapper, or bears the marks of one: quickly."""
    if any(map(_wraps, set(map(type, modules)))):
        return True
    for module in modules:
        state = module.__dict__
        if "_hf_hook" in state or "_original_forward" in state or "_compiled_call_impl" in state:
            return True
    return False


def unwrap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Take off the wrappers around a model; sentences say which, inner ones included."""
    notes: dict[str, None] = {}
    for module in model.modules():
        notes |= dict.fromkeys(_sentences(module))
    while wrapper := _wrapper(model):
        model = getattr(model, wrapper[0])
    return model, list(notes)


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are spread over processes by FSDP, in either of its forms."""
    return any(_is(module, _FLAT) or _is(module, _SHARDED) for module in model.modules())


def seed(model: nn.Module, memo: Memo) -> None:
    """Enter into a memo what wrapped modules are to be copied as: what they wrap.

    The memo must hold the copies of all parameters already.
    """
    modules = list(model.modules())
    shells = {}
    for module in modules:
        if _is_hooked(module):
            memo[id(module._hf_hook)] = None  # may hold all weights
        if _is(module, _SHARDED):
            own_class: Any = type(module).__bases__[1]
            shells[module] = memo[id(module)] = own_class.__new__(own_class)
        elif _is(module, _FLAT):
            memo |= {id(view): None for view in _views(module)}
    for module in reversed(modules):  # the innermost first
        if wrapper := _wrapper(module):
            memo[id(module)] = copy.deepcopy(getattr(module, wrapper[0]), memo)
        elif _is(module, _FLAT):
            memo[id(module)] = copy.deepcopy(module._fsdp_wrapped_module, memo)
    for module, shell in shells.items():
        shell.__setstate__(copy.deepcopy(_without_sharding(module), memo))
    for module in modules:
        if _is(module, _FLAT):
            _restore_parameters(module, memo)


def strip(clone: nn.Module) -> None:
    """Give the modules of a copy their class's forward back, where accelerate replaced it."""
    for module in clone.modules():
        if _is_hooked(module) or "_original_forward" in vars(module):
            vars(module).pop("forward", None)


def _names(module: nn.Module) -> frozenset[str]:
    of: Any = type(module)  # for mypy, classes of modules have no hash
    return _names_of(of)


@functools.lru_cache(maxsize=1024)
def _names_of(of: Any) -> frozenset[str]:
    return frozenset(f"{c.__module__}.{c.__qualname__}" for c in of.__mro__)


@functools.lru_cache(maxsize=1024)
def _wraps(of: Any) -> bool:
    return not _names_of(of).isdisjoint((*_WRAPPERS, _FLAT, _SHARDED))


def _is(module: nn.Module, name: str) -> bool:
    return name in _names(module)


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    known = _WRAPPERS.keys() & _names(module)
    return _WRAPPERS[known.pop()] if known else None


def _is_hooked(module: nn.Module) -> bool:
    return "_hf_hook" in vars(module)


def _sentences(module: nn.Module) -> list[str]:
    found = []
    if wrapper := _wrapper(module):
        found.append(wrapper[1])
    if module._compiled_call_impl is not None:
        found.append(_COMPILED)
    if _is(module, _FLAT) or _is(module, _SHARDED):
        found.append(_FSDP)
    if _is_hooked(module):
        found.append("accelerate's hooks were taken off: moves between devices are not priced")
    if "_original_forward" in vars(module):
        found.append("accelerate's mixed precision was taken off: give dtype to price another one")
    return found


def _without_sharding(module: nn.Module) -> dict[str, Any]:
    """The state of a module under ``fully_shard``, without the hooks of that."""
    state = {k: v for k, v in vars(module).items() if not k.startswith("__composable_api")}
    for name, hooks in vars(module).items():
        if name.endswith("state_dict_pre_hooks"):
            state[name] = type(hooks)()  # hold process groups, and walking loads no weights
        elif name in ("_forward_pre_hooks", "_forward_hooks"):
            foreign = ((key, hook) for key, hook in hooks.items() if not _is_of_fsdp(hook))
            state[name] = type(hooks)(foreign)
    return state


def _is_of_fsdp(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp")


def _handles(fsdp: Any) -> list[Any]:
    """Of the flat parameter; none where inner ``FullyShardedDataParallel`` hold them all."""
    return [] if fsdp._handle is None else [fsdp._handle]


def _views(fsdp: Any) -> list[Any]:
    """What stands in the modules for their parameters, and cannot be copied."""
    return [
        vars(place.module).get(place.param_name)
        for handle in _handles(fsdp)
        for place in (*handle.flat_param._param_infos, *handle.flat_param._shared_param_infos)
    ]


def _restore_parameters(fsdp: Any, memo: Memo) -> None:
    """Register on the copies what was flattened: parameters on meta, whole, tied ones tied."""
    for handle in _handles(fsdp):
        flat = handle.flat_param
        for info, shape in zip(flat._param_infos, flat._shapes, strict=True):
            held = info.module._parameters.get(info.param_name)
            whole = torch.empty(shape, dtype=flat.dtype, device="meta")
            trained = (flat if held is None else held).requires_grad
            _register(memo[id(info.module)], info.param_name, nn.Parameter(whole, trained))
        for tied in flat._shared_param_infos:
            first = memo[id(tied.prim_module)]._parameters[tied.prim_param_name]
            _register(memo[id(tied.module)], tied.param_name, first)


def _register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    vars(module).pop(name, None)
    module._parameters[name] = parameter
