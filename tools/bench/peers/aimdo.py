"""comfy-aimdo around the layers of any model, through its public interface, in the way that its README tells: before
each use of a weight fault() is asked for memory, the weight is copied when the pages are new, and unpinned after use;
where fault() has no memory, a temporary copy serves.

Host copies are pinned, and copies to the device go through two streams in turn, so that they overlap the work before
them. The budget is set by its simple headroom: the rest of the device is kept free."""

import torch
from torch import nn
from torch.nn import functional

LARGE = 256 << 20  # a temporary copy above this gets memory of its own, instead of one of the two buffers


class Streams:
    """Two streams for copies, each with a buffer for temporary ones."""

    def __init__(self, device):
        self.device, self.turn = device, 0
        self.main = torch.cuda.current_stream(device)
        self.streams = [torch.cuda.Stream(device) for _ in range(2)]
        self.buffers, self.used = [None, None], [None, None]

    def copy(self, host, to):
        """Starts the copy; what the main stream does next comes after it."""
        stream = self.streams[self.turn]
        stream.wait_stream(self.main)
        with torch.cuda.stream(stream):
            to.copy_(host, non_blocking=True)
        self.main.wait_stream(stream)
        self.turn = 1 - self.turn

    def temporary(self, host):
        """(a copy that is not kept, what to call after its use)"""
        turn, size = self.turn, host.nbytes
        if size > LARGE:
            to = torch.empty(host.shape, dtype=host.dtype, device=self.device)
            self.copy(host, to)
            return to, lambda: None
        if self.buffers[turn] is None or self.buffers[turn].numel() < size:
            self.main.synchronize()
            self.buffers[turn] = torch.empty(size, dtype=torch.uint8, device=self.device)
        to = self.buffers[turn][:size].view(host.dtype).view(host.shape)
        stream = self.streams[turn]
        if self.used[turn] is not None:
            stream.wait_event(self.used[turn])
        with torch.cuda.stream(stream):
            to.copy_(host, non_blocking=True)
        self.main.wait_stream(stream)
        self.turn = 1 - turn

        def done():
            self.used[turn] = torch.cuda.Event()
            self.used[turn].record(self.main)

        return to, done


class Weight:
    """A weight in pinned memory, with addresses of its own on the device."""

    def __init__(self, values, space, streams):
        self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
        self.place = space.alloc(self.host.nbytes)
        self.streams, self.signature, self.view = streams, None, None

    def get(self):
        """(the weight on the device, what to call after its use)"""
        from comfy_aimdo.model_vbar import vbar_fault, vbar_signature_compare, vbar_unpin
        from comfy_aimdo.torch import aimdo_to_tensor

        signature = vbar_fault(self.place)
        if signature is None:
            self.signature = None
            return self.streams.temporary(self.host)
        if self.view is None:
            view = aimdo_to_tensor(self.place, self.streams.device)
            self.view = view.view(self.host.dtype).view(self.host.shape)
        if not vbar_signature_compare(signature, self.signature):
            self.streams.copy(self.host, self.view)
            self.signature = signature
        return self.view, lambda: vbar_unpin(self.place)


def call(module, weight):
    """The module's forward with the weight of the moment."""

    def forward(x):
        values, done = weight.get()
        if isinstance(module, nn.Embedding):
            y = functional.embedding(x, values)
        else:
            y = functional.linear(x, values, module.bias)
        done()
        return y

    return forward


def wrap(model, device, budget):
    """Gives the weights of linear layers and embeddings to aimdo; the rest goes to the device."""
    from comfy_aimdo import control
    from comfy_aimdo.model_vbar import ModelVBAR

    torch.zeros(1, device=device)  # the context
    torch.cuda.synchronize(device)
    capacity = torch.cuda.get_device_properties(device).total_memory
    control.set_simple_vram_headroom(max(0, capacity - budget))
    if not control.init_device(device.index):
        raise RuntimeError("aimdo does not take the device")
    modules = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    size = sum(m.weight.nbytes + 512 for m in modules)  # each begins at a multiple of 512
    space, streams = ModelVBAR(size + (64 << 20), device.index), Streams(device)
    space.prioritize()
    for module in modules:
        values = module._parameters.pop("weight").data
        module.forward = call(module, Weight(values, space, streams))
        module.__dict__["weight"] = torch.empty(0, dtype=values.dtype, device=device)  # models ask its dtype
    return model.to(device)
