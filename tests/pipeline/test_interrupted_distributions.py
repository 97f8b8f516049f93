"""A pass over texts that is killed goes on where it stopped."""

import signal
import subprocess
import sys

from transfuse.fuse.distributions import write_distributions
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.distribution_cache import verify
from transfuse.io.models import load_model

RUN = """
import sys, time
from pathlib import Path
from transfuse.fuse import distributions
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.distribution_writing import CacheWriter
from transfuse.io.models import load_model
write = CacheWriter.write_shard
def slow(self, number, *rest):
    write(self, number, *rest)
    if number == 1:
        print("two are done", flush=True)
        time.sleep(60)
CacheWriter.write_shard = slow
texts = [f"Spain won the cup {n} times." for n in range(40)]
loaded = load_model(sys.argv[1], precision="float32", device="cpu")
distributions.write_distributions(loaded, texts, Path(sys.argv[2]), DistributionSettings(shard_tokens=200))
"""


def test_a_killed_pass_goes_on_and_ends_alike(tiny_base_folder, tmp_path):
    loaded = load_model(str(tiny_base_folder), precision="float32", device="cpu")
    texts = [f"Spain won the cup {n} times." for n in range(40)]
    settings = DistributionSettings(shard_tokens=200)
    folder = tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tiny_base_folder), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "two are done\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert sorted(before) == [f"shard-0000{n}.{kind}" for n in (0, 1) for kind in ("bin", "json")]
    told: list[int] = []
    resumed = write_distributions(loaded, texts, folder, settings, on_tokens=lambda n, n_all: told.append(n))
    assert told[0] > 300
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert {name: after[name] for name in before} == before
    whole = write_distributions(loaded, texts, tmp_path / "whole", settings)
    # Equal headers hold equal checksums, so the bytes are the same that the killed process wrote.
    assert resumed.header == whole.header
    verify(resumed)
