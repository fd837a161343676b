"""A Slurm of one machine and two virtual nodes, a sweep on it with a killed run, and runs of two nodes.

`python tests/slurm/run.py`, as root, where Debian's slurm-wlm, munge, slurmdbd and mariadb-server are installed; else
it says why it does not run. Everything lives in a temporary folder, and ends with the script.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

COMMANDS = ("munged", "mariadb-install-db", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "srun", "sbatch", "sacct")
TRAIN = (sys.executable, "-m", "msae.train")
DIGITS = ("data=digits", "trainer=cpu", "model=ae")
EPOCHS = 60
SWEEP = (*DIGITS, f"trainer.max_epochs={EPOCHS}", "-m", "seed=0,1,2,3", "hydra/launcher=slurm")
TWO = ("data=digits", "model=ae", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2")

SLURM = """
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStoragePass={folder}/munge.sock
MpiDefault=none
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 RealMemory=4000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
SLURMDBD = """
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[4]}
StorageUser=root
StoragePass=none
StorageLoc=slurm
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge slurmdbd mariadb-server"
    return "not as root" if os.geteuid() else None


def free_ports(n: int) -> list[int]:
    """Ports that nothing listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait(what: str, until: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.2)


def listens(port: int) -> bool:
    """Whether something does at a port."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def start_slurm(folder: Path, stack: ExitStack) -> None:
    """Start all of its daemons, which end with the stack, and tell this environment of it."""
    ports = free_ports(5)
    known = {"host": socket.gethostname().partition(".")[0], "folder": folder, "ports": ports}
    for name, text in (("slurm.conf", SLURM), ("slurmdbd.conf", SLURMDBD)):
        (folder / name).write_text(text.format(**known))
        (folder / name).chmod(0o600)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
    files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("pid-file", "log-file", "seed-file")]
    database = [f"--datadir={folder}/db", "--user=root"]
    subprocess.run(["mariadb-install-db", "--no-defaults", *database], check=True, capture_output=True)

    def daemon(*command: str) -> None:
        log = stack.enter_context((folder / f"{command[0]}.out").open("a"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)

    daemon(
        "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock", *files
    )
    open_to_all = [
        "--skip-grant-tables",
        "--bind-address=127.0.0.1",
        f"--port={ports[4]}",
        f"--socket={folder}/db.sock",
    ]
    daemon("mariadbd", "--no-defaults", *database, *open_to_all)
    wait("MariaDB", lambda: listens(ports[4]))
    daemon("slurmdbd", "-D")
    wait("slurmdbd", lambda: listens(ports[1]))
    daemon("slurmctld", "-D")
    for node in ("n1", "n2"):
        daemon("slurmd", "-D", "-N", node)
    wait("nodes", lambda: output("sinfo", "--noheader", "-o", "%t %D") == "idle 2")
    stack.callback(wait, "the end of jobs", lambda: not output("squeue", "--noheader"))
    stack.callback(output, "scancel", "--user=root")


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def train(*args: str, before: tuple[str, ...] = (), code: int = 0) -> tuple[str, str]:
    """Run the command; what it prints."""
    result = subprocess.run([*before, *TRAIN, *args], check=False, capture_output=True, text=True)
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    return result.stdout, result.stderr


def process_of(task: int) -> int:
    """The process of a task of a job array."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            environment = (path / "environ").read_bytes().split(b"\0")
            if b"SLURM_ARRAY_TASK_ID=%d" % task in environment and b"python" in (path / "comm").read_bytes():
                return int(path.name)
    raise LookupError(task)


def a_killed_run() -> None:
    """The sweep ends, reports the others and names it; `resume=` finishes it."""
    process = subprocess.Popen([*TRAIN, *SWEEP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait("a sweep", lambda: any(Path("runs").glob("*/seed=1/train.log")))
    [sweep] = Path("runs").iterdir()
    log = sweep / "seed=1/train.log"
    wait("half of a run", lambda: log.read_text().count("epoch ") > 5, 300)
    killed = time.monotonic()
    os.kill(process_of(1), signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    seconds = time.monotonic() - killed
    assert process.returncode == 2, (out, err)
    assert err.splitlines()[-1] == "error: 1 of the runs did not finish: seed=1", err
    report = json.loads((sweep / "report.json").read_text())
    assert report["missing"] == {"seed=1": "not finished"}, report
    assert report["data"]["digits"]["rows"][0]["n"] == 3, report
    reached = log.read_text().splitlines()[-1]
    assert "step" in reached, reached
    print(f"killed at: {reached}")
    print(f"the sweep ended {seconds:.0f} s later: {err.splitlines()[-1]}")

    train(f"resume={sweep}")
    report = json.loads((sweep / "report.json").read_text())
    assert not report["missing"], report
    assert report["data"]["digits"]["rows"][0]["n"] == 4, report
    assert len(json.loads((sweep / "seed=1/metrics.json").read_text())["history"]) == EPOCHS
    assert log.read_text().count("epoch 1,") == 1, log.read_text()
    print("resume finished it: 4 runs reported")


def two_nodes() -> None:
    """A run of two nodes, by srun and by the launcher, has the losses of one process with the doubled batch."""
    short = ("trainer.max_epochs=1",)
    train(*DIGITS, *short, "hydra.run.dir=one")
    train(*TWO, *short, "data.batch_size=32", before=("srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit"))
    train(*TWO, *short, "data.batch_size=32", "-m", "seed=0", "hydra/launcher=slurm", "hydra.sweep.dir=nodes")
    expected = json.loads(Path("one/metrics.json").read_text())["history"][0]
    for place in ("runs/20", "nodes/"):
        [path] = Path().glob(f"{place}*/metrics.json")
        [found] = json.loads(path.read_text())["history"]
        assert all(abs(found[key] / value - 1) < 1e-5 for key, value in expected.items()), (found, expected)
        print(f"two nodes, {place}: train/loss {found['train/loss']:.7f}, of one process {expected['train/loss']:.7f}")


def main() -> None:
    """The command."""
    if reason := missing():
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        start_slurm(Path(name), stack)
        # names of the virtual nodes mean nothing to gloo
        os.environ |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        work = Path(name, "work")
        work.mkdir()
        os.chdir(work)
        stack.callback(os.chdir, "/")
        a_killed_run()
        two_nodes()
    print("passed")


if __name__ == "__main__":
    main()
