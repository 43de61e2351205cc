"""A real Slurm on one machine: a login host and nodes, each with its own processes, mounts, network and host name.

A host is a set of Linux namespaces. When its first process is killed, the kernel ends every other process of the host
and deletes its network. So nothing stays behind, and one signal simulates the crash of a node. It needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "ip", "setpriv", "unshare", "nsenter")
_NETWORK = "10.77.0"
_DAEMONS = "/usr/sbin"
_SETUP = """
set -e
mount -t tmpfs tmpfs /mnt
index=0
for path in {kept}; do index=$((index + 1)); mkdir /mnt/$index; mount --bind "$path" /mnt/$index; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs {home}
index=0
for path in {kept}; do index=$((index + 1)); mkdir -p "$path"; mount --bind /mnt/$index "$path"; done
mount --bind {hosts} /etc/hosts
hostname {name}
ip link set lo up
echo ready
sleep infinity &
wait
"""
_CONFIG = """
ClusterName=medssr
SlurmctldHost=login({network}.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=20
KillWait=20
MinJobAge=3600
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""


class Host:
    """One host. `pid` is the id of its first process, as seen from outside."""

    def __init__(self, name: str, ip: str, folder: Path, kept: list[Path]):
        self.name, self.ip, self._folder, self._kept = name, ip, folder, kept

    def boot(self) -> None:
        script = _SETUP.format(
            kept=" ".join(f"'{path}'" for path in self._kept),
            home=Path.home(),
            hosts=self._folder / "hosts",
            name=self.name,
        )
        self._unshare = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=KILL",  # no host outlives the tests, however they end
                "unshare",
                "--net",
                "--uts",
                "--ipc",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                script,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._unshare.stdout.readline() == "ready\n", f"{self.name} did not boot"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def command(self, *command: object, user: int = 0) -> list[str]:
        """Return the command that runs `command` on this host as `user`."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--ipc", "--mount", "--pid"]
        who = [f"--setuid={user}", f"--setgid={user}"] if user else []
        return [*enter, *who, f"--wd={Path.cwd()}", "--", *map(str, command)]

    def run(self, *command: object, user: int = 0, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*command, user=user), capture_output=True, text=True, check=False, **options)

    def crash(self) -> None:
        """Kill every process of the host at once."""
        self._unshare.kill()
        self._unshare.wait()
        self._unshare.stdout.close()

    def processes(self, text: str) -> list[int]:
        """Return the ids, as seen from outside, of this host's processes with `text` in their command line."""
        mine = str(Path(f"/proc/{self.pid}/ns/pid").readlink())
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _matches(folder, mine, text)]


def _matches(folder: Path, namespace: str, text: str) -> bool:
    try:
        return str((folder / "ns" / "pid").readlink()) == namespace and text in _command_line(folder)
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False


def _command_line(folder: Path) -> str:
    return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")


class SlurmCluster:
    """A Slurm cluster; use it as a context manager. `login` is the host from which users submit jobs."""

    def __init__(self, nodes: int, kept: list[Path], cpus: int = 8):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        cache = Path.home() / ".cache"
        cache.mkdir(exist_ok=True)
        # Python may be in a home directory that only its owner may enter; the hosts see only this part of it.
        kept = [*kept, cache, Path(sys.base_prefix), *_own_cache()]
        self._kept = [path for path in kept if path.is_relative_to("/tmp") or path.is_relative_to(Path.home())]
        self._daemons: dict[str, subprocess.Popen] = {}
        self.login = self._host("login", 1)
        self.nodes = {f"n{index}": self._host(f"n{index}", 1 + index) for index in range(1, nodes + 1)}
        self._write_config(cpus)

    def _host(self, name: str, number: int) -> Host:
        return Host(name, f"{_NETWORK}.{number}", self.folder, self._kept)

    def _write_config(self, cpus: int) -> None:
        hosts = {"localhost": "127.0.0.1"} | {host.name: host.ip for host in (self.login, *self.nodes.values())}
        (self.folder / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in hosts.items()))
        text = _CONFIG.format(network=_NETWORK, folder=self.folder)
        for host in self.nodes.values():
            text += f"NodeName={host.name} NodeAddr={host.ip} CPUs={cpus} RealMemory=8000 State=UNKNOWN\n"
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        (self.folder / "state").mkdir()

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.login.boot()
        on_login = self.login.run
        assert on_login("ip", "link", "add", "br0", "type", "bridge").returncode == 0
        on_login("ip", "addr", "add", f"{self.login.ip}/24", "dev", "br0")
        on_login("ip", "link", "set", "br0", "up")
        self._daemon(
            "munged",
            self.login,
            "munged",
            "--foreground",
            "--force",
            f"--socket={self.folder}/munge.socket",
            f"--key-file={self.folder}/munge.key",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )
        self.until(lambda: (self.folder / "munge.socket").exists(), "munged listens")
        self._daemon("slurmctld", self.login, "slurmctld", "-D")
        for name in self.nodes:
            self.boot_node(name)
        self.until(lambda: self.node_states() == dict.fromkeys(self.nodes, "idle"), "every node is idle")

    def boot_node(self, name: str) -> None:
        """Boot a node, for the first time or after a crash."""
        host = self.nodes[name]
        host.boot()
        self.login.run("ip", "link", "delete", name)
        added = self.login.run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0")
        assert added.returncode == 0, added.stderr
        # The namespace of the peer is named by a process that both sides see, hence from outside.
        moved = subprocess.run(
            ["nsenter", f"--target={self.login.pid}", "--net", "ip", "link", "set", "eth0", "netns", str(host.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert moved.returncode == 0, moved.stderr
        self.login.run("ip", "link", "set", name, "master", "br0", "up")
        host.run("ip", "addr", "add", f"{host.ip}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        self._daemon(f"slurmd-{name}", host, "slurmd", "-D")

    def _daemon(self, key: str, host: Host, program: str, *options: str) -> None:
        log = open(self.folder / f"{key}.out", "ab")  # noqa: SIM115
        command = host.command(f"{_DAEMONS}/{program}", *options)
        self._daemons[key] = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        log.close()

    def node_states(self) -> dict[str, str]:
        rows = self.slurm("sinfo", "--noheader", "--Node", "--format=%N %T").split("\n")
        return dict(row.split() for row in rows if row)

    def slurm(self, *command: object, user: int = 0, env: dict[str, str] | None = None) -> str:
        """Return the output of a Slurm command on the login host; "" if it fails because no controller answers."""
        done = self.login.run(*command, user=user, env=self.env | (env or {}))
        return done.stdout.strip()

    def sbatch(self, *arguments: object, user: int = 0, **env: str) -> int:
        """Submit a job with `env` added to the environment; return its id."""
        done = self.login.run("sbatch", "--parsable", *arguments, user=user, env=self.env | env)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def job(self, job: int) -> dict[str, str]:
        words = self.slurm("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: int) -> str:
        return self.job(job).get("JobState", "")

    def wait(self, job: int, within_s: float = 900) -> dict[str, str]:
        """Wait for the end of a job, requeues included, and return its record."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.state(job) in ended, f"job {job} has ended", within_s)
        return self.job(job)

    @contextmanager
    def hanging_controller(self) -> Iterator[None]:
        """Stop the controller during the block: it accepts connections, and answers none."""
        controller = self.login.processes("slurmctld")
        for pid in controller:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in (*controller, self._daemons["slurmctld"].pid):  # nsenter stops with its child
                os.kill(pid, signal.SIGCONT)

    def until(self, condition: Callable[[], bool], what: str, within_s: float = 60) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            for key, daemon in self._daemons.items():
                assert daemon.poll() is None or key.startswith("slurmd-"), f"{key} ended; see {self.folder}"
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
            time.sleep(0.2)

    def __exit__(self, *exc_info: object) -> None:
        for host in (*self.nodes.values(), self.login):
            if hasattr(host, "pid"):
                host.crash()
        for daemon in self._daemons.values():
            daemon.wait()
        shutil.rmtree(self.folder)


def _own_cache() -> list[Path]:
    """$MEDSSR_CACHE, which may lie in /tmp."""
    folders = [Path(os.environ["MEDSSR_CACHE"])] if "MEDSSR_CACHE" in os.environ else []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def why_not() -> str | None:
    """Return why a cluster cannot be started here; None if it can."""
    missing = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:{_DAEMONS}:/sbin")]
    if missing:
        return f"{', '.join(missing)} not found; install slurm-wlm, munge and iproute2"
    return None if os.geteuid() == 0 else "network namespaces need root"
