"""`anyi2v studio`: a browser page to draw tracks and run jobs. Imports torch and gradio only when it runs."""

from dataclasses import dataclass
from pathlib import Path

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.device import Dtype, machine_of
from anyi2v.cli.messages import result
from anyi2v.latency.options import within


@dataclass(frozen=True)
class Studio:
    """Draw tracks on an image in the browser, run jobs, compare them.

    The page can be opened only from this machine and sends no requests to any other. It runs the same code as `anyi2v
    animate`: each run shows the command that reproduces it byte for byte. Needs the extra "studio".

    Examples:
    $ anyi2v studio
    $ anyi2v studio --backbone animatediff.safetensors --device cuda --port 7000
    """

    backbone: str = "micro"
    """Name of a shipped backbone, or a converted .safetensors file."""
    out: Path = Path("studio")
    """Folder for sessions, jobs, and runs in the format of `anyi2v animate`."""
    port: int | None = None
    """Port of the page; None: the first free one from 7860."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps."""
    dtype: Dtype = "auto"
    """Precision of the networks; auto: 16 bits if a quick test finds it faster on the device."""
    threads: int | None = None
    """CPU threads; None: PyTorch's choice."""
    low_memory: bool = False
    """Use less memory and more time. Chosen automatically if a job would not fit otherwise."""
    cache: Path | None = None
    """Folder that stores features of inverted images, in anyi2v-inversions, up to 4 GiB; jobs with other tracks on the
    same image and prompt then skip the inversion."""

    def run(self) -> None:
        """Serve the page until interrupted."""
        if self.port is not None:
            within("--port", self.port, 1, 65535)
        read_config(self.backbone)
        from anyi2v.studio.server import check_gradio, served

        check_gradio()
        machine = machine_of(self.device, self.dtype, self.threads, self.low_memory, self.cache)
        with served(self.backbone, machine, self.out, self.port) as (blocks, address):
            result(address, f"studio: {address} (Ctrl-C ends it); runs are written to {self.out / 'runs'}")
            blocks.block_thread()
