"""One way to time every arm: a CUDA graph of many launches, replayed with a cold L2 and events around each replay."""
import os
import platform

import torch

from provenance import nvidia_smi
from tables import summary

FLUSH_BYTES = 512 << 20


class Timer:
    """Times graphs of launches on one device. Before each replay a read of FLUSH_BYTES replaces what the L2 held (a write would leave
    lines that have to be written back during the measurement)."""

    device = "cuda"

    def __init__(self, replays: int, warm_up: int = 3):
        self.replays, self.warm_up = replays, warm_up
        self.clocks = {}  # seen while the last arm ran
        self._flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")

    def graph_us(self, launches):
        """`launches` are callables, one per launch. Time of one launch: p10, median, p90 over replays."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # module loading, and allocations that arms make
            for launch in (launches[0], launches[-1]):
                launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for launch in launches:
                launch()
        times = self._replay_us(graph.replay, self.replays, self.warm_up)
        graph.reset()
        return summary([time / len(launches) for time in times])

    def plain_us(self, launch):
        return summary(self._replay_us(launch, self.replays, self.warm_up))

    def read_bandwidth(self, num_bytes: int = 4 << 30):
        """(TB/s, method): the best median rate of several plain reads of one large buffer that is read once."""
        from read_kernel import read

        source = torch.randint(0, 1 << 30, (num_bytes // 4,), dtype=torch.int32, device="cuda")
        sink = torch.zeros(num_bytes // 4 // 2048, dtype=torch.int32, device="cuda")
        best = (0.0, "")
        tried = [("torch sum of f32", lambda: source.view(torch.float32).sum())]
        for block, blocks, warps in ((2048, 16, 4), (4096, 8, 8), (4096, 32, 8), (8192, 16, 8), (8192, 8, 16), (16384, 4, 16)):
            grid = (source.numel() // (block * blocks),)
            tried.append((f"Triton sum of i32, {block} x {blocks} elements a program, {warps} warps",
                          lambda g=grid, b=block, n=blocks, w=warps: read[g](source, sink, b, n, num_warps=w)))
        for name, launch in tried:
            launch()
            rate = num_bytes / self.plain_us(launch)["median_us"] / 1e6
            best = max(best, (rate, f"{name}, {num_bytes >> 30} GiB, best of {len(tried)} kernels, median of {self.replays}"))
        del source
        torch.cuda.empty_cache()
        return best

    @staticmethod
    def machine():
        """What every result line says about where it was measured."""
        return {"device": torch.cuda.get_device_name(), "driver": nvidia_smi("driver_version"), "cuda": torch.version.cuda,
                "torch": torch.__version__, "python": platform.python_version()}

    @staticmethod
    def free_bytes() -> int:
        return torch.cuda.mem_get_info()[0]

    @staticmethod
    def synchronize():
        torch.cuda.synchronize()

    def _replay_us(self, replay, replays, warm_up):
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays + warm_up)]
        for start, end in events:
            self._flush.sum()
            start.record()
            replay()
            end.record()
        self.clocks = clocks()  # the device is busy with the replays now
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events[warm_up:]]


def clocks():
    """SM and memory clock, power and temperature now, or why they are not known."""
    try:
        import pynvml
        pynvml.nvmlInit()
        index = int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0")
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        return {"clock_sm_mhz": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM),
                "clock_memory_mhz": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_MEM),
                "power_w": pynvml.nvmlDeviceGetPowerUsage(device) / 1000,
                "temperature_c": pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU)}
    except Exception as error:  # noqa: BLE001: no module, no driver, no permission: nothing is known
        return {"clocks_error": f"{type(error).__name__}: {error}"}
