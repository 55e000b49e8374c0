"""`anyi2v studio`: a page to draw on. Free of torch and gradio until it runs."""

from dataclasses import dataclass
from pathlib import Path

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.device import Dtype, machine_of
from anyi2v.latency.options import within


@dataclass(frozen=True)
class Studio:
    """Draw tracks on an image in the browser, run jobs, compare them.

    The page is served on this machine only, to this machine only, and asks no other one for anything. What it runs is
    what `anyi2v animate` runs: each run comes with the command that makes the same bytes. Needs the extra "studio".

    Examples:
    $ anyi2v studio
    $ anyi2v studio --backbone animatediff.safetensors --device cuda --port 7000
    """

    backbone: str = "micro"
    """Name of a shipped backbone, or a converted .safetensors file."""
    out: Path = Path("studio")
    """Folder for sessions, jobs, and runs as `anyi2v animate` writes them."""
    port: int | None = None
    """Port of the page; None: the first free one from 7860."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""
    dtype: Dtype = "auto"
    """Precision of the networks; auto: 16 bits if the device is faster with them, which is measured once."""
    threads: int | None = None
    """CPU threads; None: PyTorch's choice."""
    low_memory: bool = False
    """Use less memory and more time. Chosen automatically if a job would not fit otherwise."""
    cache: Path | None = None
    """Folder where inverted images are kept, in anyi2v-inversions, 4 GiB of them: other tracks on the same image and
    prompt then need no inversion."""

    def run(self) -> None:
        """Serves the page until it is interrupted."""
        if self.port is not None:
            within("--port", self.port, 1, 65535)
        read_config(self.backbone)
        from anyi2v.studio.server import check_gradio, served

        check_gradio()
        machine = machine_of(self.device, self.dtype, self.threads, self.low_memory, self.cache)
        with served(self.backbone, machine, self.out, self.port) as (blocks, address):
            print(f"studio: {address} (Ctrl-C ends it); runs are written to {self.out / 'runs'}", flush=True)
            blocks.block_thread()
