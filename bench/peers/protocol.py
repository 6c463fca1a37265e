"""What the PyTorch sides share: commands as lines of JSON on standard input, arrays as raw f32 files in a folder."""
import json
import os
import sys
import time

import numpy as np
import torch


class Peer:
    def __init__(self, folder, threads):
        torch.set_num_threads(threads)
        self.folder = folder

    def read(self, name, *shape):
        values = np.fromfile(os.path.join(self.folder, f"{name}.f32"), dtype=np.float32)
        return torch.from_numpy(values.reshape(shape))

    def write(self, name, tensor):
        tensor.detach().float().contiguous().numpy().tofile(os.path.join(self.folder, f"{name}.f32"))

    def serve(self, commands):
        """Answers each line {"do": name, ...} with {"seconds": ...} and what the command returned."""
        print(json.dumps({"ready": torch.__version__}), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            started, used = time.perf_counter(), time.process_time()
            result = commands[command.pop("do")](**command) or {}
            times = {"seconds": time.perf_counter() - started, "cpuSeconds": time.process_time() - used}
            print(json.dumps({**times, **result}), flush=True)


def peak_memory():
    """Highest resident memory of this process so far, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
