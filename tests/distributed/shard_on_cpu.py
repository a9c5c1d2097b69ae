"""Lets Accelerate shard over processes on a CPU, which it otherwise does on accelerators only, and counts what FSDP2 sends."""

from collections import Counter

from accelerate import state
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

sent = Counter()


def allow():
    """Choose FSDP where Accelerate's check of the device would have chosen plain processes; nothing else is changed."""
    original = state.AcceleratorState.__init__

    def choose(self, *args, fsdp_plugin=None, **kwargs):
        chosen_before = bool(state.AcceleratorState._shared_state)
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and not chosen_before:
            assert self.distributed_type == state.DistributedType.MULTI_CPU
            self.distributed_type = state.DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            state.PartialState._shared_state["distributed_type"] = self.distributed_type

    state.AcceleratorState.__init__ = choose


def count():
    """Count gatherings of weights and reductions of gradients."""
    for name in ("foreach_all_gather", "foreach_reduce"):
        setattr(_fsdp_param_group, name, _counting(name, getattr(_fsdp_param_group, name)))


def _counting(name, send):
    def sending(*args, **kwargs):
        sent[name] += 1
        return send(*args, **kwargs)

    return sending
