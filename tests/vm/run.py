"""The virtual machine for real: `vagrant up` with the project's own Vagrantfile, then all that is promised in it.

    run.py                     builds the box (once), runs all steps, removes everything; exit status 0 if all is well
    run.py --keep-going        goes on after a step that failed

Law: the host is left as it was, however this ends. libvirtd, its network, dnsmasq and the machine live in namespaces of
their own (network, mounts, processes): they end with their first process, and that ends with this one. The way out is
slirp4netns, which has no more than an ordinary process has. On the host there is `.vm/` in the project's folder, with
the box and, while it runs, the machine's disk.

The machine is emulated (no KVM), about ten times slower than the host.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / ".vm"
BOX: Final = FOLDER / "box"
RUN: Final = FOLDER / "run"
LIMIT: Final = 40 * 60.0
"""Seconds for everything."""
PORT: Final = 31000
TAP: Final = "tap0"
STATE_FOLDERS: Final = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")

QEMU_CONF: Final = """
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = [ ]
"""

OVERRIDES: Final = """
# What only this test needs; merged before the project's own Vagrantfile, which stays as it is.
Vagrant.configure("2") do |config|
  config.vm.boot_timeout = 600
  config.vm.box_check_update = false
  config.vm.provider "libvirt" do |libvirt|
    libvirt.uri = "qemu:///system"
    libvirt.driver = "qemu"
    libvirt.cpu_mode = "custom"
    libvirt.cpu_model = "qemu64"
    libvirt.storage_pool_name = "vmtest"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"
  end
  if File.exist?("%(certificates)s")
    # The machine trusts whom the host trusts, and pip does too.
    config.vm.provision "file", source: "%(certificates)s", destination: "/tmp/host.crt"
    config.vm.provision "shell", inline: <<-END
      install -D -m 0644 /tmp/host.crt /usr/local/share/host-ca.crt
      printf '[global]\\ncert = /usr/local/share/host-ca.crt\\n' >/etc/pip.conf
    END
  end
end
"""


def say(text: str) -> None:
    """Tells whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Failed(Exception):
    """A step did not do what it should; the message says what was seen."""


# ----- outside: namespaces and the way out of them


def outside(arguments: list[str]) -> int:
    """Runs this program again where it cannot change the host; returns its exit status."""
    if os.geteuid() != 0:
        sys.stderr.write("this needs root: put sudo before it\n")
        return 1
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)
    ready_read, ready_write = os.pipe()
    enclose = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    again = [sys.executable, "-P", __file__, "--inside", str(ready_write), *arguments]
    # Whoever kills this process with -9 ends all of them.
    with_us = ["setpriv", "--pdeathsig", "KILL"]
    inside = subprocess.Popen([*with_us, *enclose, *again], pass_fds=[ready_write])
    os.close(ready_write)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    way_out = None
    try:
        if os.read(ready_read, 1):
            slirp = ["slirp4netns", "--configure", "--mtu=1500", "--disable-host-loopback", str(inside.pid), TAP]
            null = subprocess.DEVNULL
            way_out = subprocess.Popen([*with_us, *slirp], stdout=null, stderr=null)
        return inside.wait(LIMIT)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"not done after {LIMIT / 60:.0f} minutes\n")
        return 1
    finally:
        for one in filter(None, (inside, way_out)):
            one.kill()
            one.wait()
        os.close(ready_read)
        shutil.rmtree(RUN, ignore_errors=True)


# ----- inside: libvirt


def inside(ready: int, keep_going: bool) -> int:
    """Everything else, in namespaces of its own."""
    become_init()
    log = (FOLDER / "last-run.log").open("w+", errors="replace")
    environment = make_surroundings(ready)
    machine = Machine(environment, log)
    steps = Steps(log)
    if not (BOX / "box.json").exists():
        steps.run("build the box", lambda: machine.host(str(ROOT / "tests/vm/build-box"), str(BOX), seconds=900))
    with libvirtd(machine):
        machine.host("vagrant", "box", "add", str(BOX / "box.json"), "--provider", "libvirt", seconds=120)
        try:
            for name, step in scenario(machine):
                steps.run(name, step, must=not keep_going or name == UP)
        except Failed:
            pass
        finally:
            steps.run("vagrant destroy -f", lambda: machine.vagrant("destroy", "-f", seconds=120), must=False)
    return steps.conclude()


def become_init() -> None:
    """Goes on as a child of the first process, which does what only that one can: it takes leave of all the orphans."""
    child = os.fork()
    if not child:
        return
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def make_surroundings(ready: int) -> dict[str, str]:
    """Ensures that what libvirt writes is ours, and that there is a way out; returns all programs' environment."""
    # A /sys that shows our network, and no cgroups for libvirt to make folders in.
    for kind, folder in (("sysfs", "/sys"), ("tmpfs", "/sys/fs/cgroup"), ("tmpfs", "/run")):
        subprocess.run(["mount", "-t", kind, "none", folder], check=True)
    for folder in STATE_FOLDERS:
        own = RUN / "host" / folder[1:]
        shutil.copytree(folder, own, symlinks=True)
        subprocess.run(["mount", "--bind", str(own), folder], check=True)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    resolver = RUN / "resolv.conf"
    resolver.write_text("nameserver 10.0.2.3\n")
    subprocess.run(["mount", "--bind", str(resolver), str(Path("/etc/resolv.conf").resolve())], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.write(ready, b"!")
    os.close(ready)
    until(lambda: Path("/sys/class/net", TAP).exists() or _has_link(TAP), "the way out", 20)
    copy_project(RUN / "checkout")
    home = RUN / "home"
    (home / "vagrant").mkdir(parents=True)
    (home / "vagrant" / "Vagrantfile").write_text(OVERRIDES % {"certificates": CERTIFICATES})
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "VAGRANT_HOME": str(home / "vagrant"),
        "VAGRANT_NO_COLOR": "1",
        "KPROXY_EXPOSE": str(PORT),
        "LANG": "C.UTF-8",
    }


def copy_project(target: Path) -> None:
    """Makes a clean checkout: what is committed, or everything where the project did not come by git."""
    if not (ROOT / ".git").exists():
        theirs = (".venv", ".vm", ".vagrant", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*theirs))
        return
    target.mkdir()
    archive = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "archive", "HEAD"]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as made:
        subprocess.run(["tar", "-x", "-C", str(target)], stdin=made.stdout, check=True)


def _has_link(name: str) -> bool:
    return subprocess.run(["ip", "-4", "address", "show", name], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def libvirtd(machine: Machine) -> Iterator[None]:
    """A libvirtd with a storage pool, for as long as it is needed."""
    daemon = subprocess.Popen(["/usr/sbin/libvirtd"], stdout=machine.log, stderr=machine.log, env=machine.environment)
    try:
        until(
            lambda: subprocess.run(["virsh", "list"], capture_output=True, check=False).returncode == 0, "libvirtd", 30
        )
        images = RUN / "images"
        images.mkdir()
        machine.host("virsh", "pool-define-as", "vmtest", "dir", "--target", str(images))
        machine.host("virsh", "pool-start", "vmtest")
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def until(check: Callable[[], Any], what: str, seconds: float) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


class Machine:
    """The machine, and programs that run around it.

    Args:
        environment: of every program.
        log: where all that they print goes.
    """

    def __init__(self, environment: dict[str, str], log: Any) -> None:
        self.environment = environment
        self.log = log

    def host(self, *argv: str, seconds: float = 60, cwd: Path = RUN, is_expected: bool = True) -> str:
        """What a program beside the machine prints; it must succeed unless it is not expected to."""
        self.log.write(f"\n$ {' '.join(argv)}\n")
        self.log.flush()
        began = self.log.tell()
        try:
            done = subprocess.run(
                argv,
                cwd=cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(argv)[:100]}: not done after {seconds:.0f} s") from error
        self.log.seek(began)
        output: str = self.log.read()
        self.log.write(f"[status {done.returncode}]\n")
        self.log.flush()
        if (done.returncode == 0) != is_expected:
            tail = "\n    ".join(output.strip().splitlines()[-15:])
            raise Failed(f"{' '.join(argv)[:200]}: status {done.returncode}\n    {tail}")
        return output

    def vagrant(self, *arguments: str, seconds: float) -> str:
        """What `vagrant` prints, run as a person would, in the project's vagrant folder."""
        return self.host("vagrant", *arguments, seconds=seconds, cwd=RUN / "checkout" / "vagrant")

    def ssh(self, command: str, seconds: float = 300) -> str:
        """What a command in the machine prints, by `vagrant ssh -c`; the command must succeed."""
        return self.vagrant("ssh", "-c", command, "--", "-o", "LogLevel=QUIET", seconds=seconds)

    def script(self, text: str, seconds: float = 300) -> str:
        """What a shell script prints that root runs in the machine; it stops at the first command that fails."""
        path = RUN / "checkout" / "vagrant" / ".vagrant" / "script"
        path.write_text(f"set -euo pipefail\n{text}\n")
        target = "/tmp/kproxy-vm-test"
        self.host("vagrant", "upload", str(path), target, seconds=120, cwd=RUN / "checkout" / "vagrant")
        return self.ssh(f"sudo bash {target}", seconds)


class Steps:
    """Runs steps one after another, and knows how long each took and what became of it."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._rows: list[tuple[str, float, str]] = []

    def run(self, name: str, step: Callable[[], Any], must: bool = True) -> None:
        """Runs one step.

        Raises:
            Failed: it failed, and nothing can come after it.
        """
        self._log.write(f"\n===== {name}\n")
        began = time.monotonic()
        failure = ""
        try:
            step()
        except (Failed, AssertionError) as error:
            failure = str(error) or "assertion failed"
        took = time.monotonic() - began
        self._rows.append((name, took, failure))
        say(f"{time.strftime('%H:%M:%S')} {took:7.1f} s  {'FAILED' if failure else 'ok':6}  {name}")
        if failure:
            say(f"  {failure}")
            if must:
                raise Failed(name)

    def conclude(self) -> int:
        """Says what came of it all; the exit status."""
        failed = [name for name, _, failure in self._rows if failure]
        total = sum(took for _, took, _ in self._rows)
        rows = [{"step": name, "seconds": round(took, 1), "ok": not failure} for name, took, failure in self._rows]
        (FOLDER / "timings.json").write_text(json.dumps(rows, indent=2) + "\n")
        well = len(self._rows) - len(failed)
        say(f"{well} of {len(self._rows)} steps are well, {total:.0f} s; all output: {FOLDER}/last-run.log")
        return 1 if failed else 0


# ----- what is promised


UP: Final = "vagrant up"
KPROXY: Final = "kproxy"

STATE: Final = """
cd /vagrant/tests/dataplane; export PYTHONPATH=.:/vagrant
/vagrant/.venv/bin/python -c '
import json, lab_support
print("STATE" + json.dumps(lab_support.host_state()))'
"""


def scenario(machine: Machine) -> Iterator[tuple[str, Callable[[], Any]]]:
    """All steps, in order."""
    test = Tests(machine)
    yield UP, lambda: machine.vagrant("up", "--provider=libvirt", "--no-tty", seconds=1500)
    yield "what the provisioner leaves", test.provisioned
    yield "the host's namespace before, during and after a lab", test.host_is_left_alone
    yield "three commands as typed: up, apply, verify", test.as_typed
    yield "a node port from outside, when asked for", test.exposed
    yield "a second provisioning changes nothing", test.provision_twice
    yield "a second rsync keeps .venv", test.rsync_twice
    yield "make demo", lambda: machine.ssh("cd /vagrant && sudo make demo && sudo make down", 900)
    yield "br_netfilter was not needed", test.no_br_netfilter
    yield "conditions of the kernel", test.conditions
    yield "the packet tests", test.packets
    yield "a kernel without IPv6", test.no_ipv6


class Tests:
    """What is promised of the machine.

    Args:
        machine: where.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def provisioned(self) -> None:
        """kproxy is found by root, shells complete, modules are there, the message is there."""
        seen = self._machine.ssh(
            "sudo kproxy --version; sudo which kproxy; nproc; lsmod | awk '{print $1}' | xargs; cat /etc/motd;"
            " bash -lic 'source /usr/share/bash-completion/bash_completion; _completion_loader kproxy;"
            " complete -p kproxy'"
        )
        for words in ("kproxy 0.", "/usr/local/bin/kproxy\n", "\n2\n", "vxlan", "ip_vs", "sctp", "sudo kproxy verify",
                      "kubectl", "_kproxy_completion"):  # fmt: skip
            assert words in seen, f"{words!r} is missing in: {seen}"

    def host_is_left_alone(self) -> None:
        """The host's namespace is the same but for what `lab check` has listed."""
        seen = self._machine.script(
            f"{STATE}\necho REPORT; {KPROXY} lab check -o json; echo END\n{STATE}\n"
            f"{KPROXY} lab up; {KPROXY} apply -f /vagrant/manifests/nodeport --wait 60\n{STATE}\n"
            f"{KPROXY} lab down\n{STATE}",
            600,
        )
        before, checked, during, after = (
            json.loads(line.partition("STATE")[2]) for line in seen.splitlines() if line.startswith("STATE")
        )
        report = json.loads(seen.partition("REPORT\n")[2].partition("\nEND")[0])
        added = {
            key.replace("/proc/sys/", "").replace("/", ".") for key in checked["sysctls"].keys() - before["sysctls"]
        }
        listed = set(report["addedSysctls"])
        assert report["ok"], report
        assert report["variant"] == "legacy", report
        assert {key for key in added if not key.endswith(("_count", "_key"))} <= listed, added ^ listed
        for name, one in (("during", during), ("after", after)):
            for what in one:
                assert one[what] == checked[what], (
                    f"{name} the lab, {what} differs: {difference(one[what], checked[what])}"
                )
        for what in before.keys() - {"sysctls"}:
            assert before[what] == checked[what], f"the check changed {what}"

    def as_typed(self) -> None:
        """The command of the README, as typed."""
        seen = self._machine.ssh(
            "sudo kproxy lab up && sudo kproxy apply -f /vagrant/manifests/nodeport-local && sudo kproxy verify", 600
        )
        assert "rows as promised" in seen, seen
        self._machine.ssh("sudo kproxy lab down")

    def exposed(self) -> None:
        """Not before it was asked for, then by the forwarded port, and the client seen is the documented one."""
        curl = ["curl", "-s", "--max-time", "20", f"http://127.0.0.1:{PORT}/json"]
        self._machine.ssh("sudo kproxy lab up && sudo kproxy apply -f /vagrant/manifests/nodeport")
        refused = subprocess.run(curl, capture_output=True, check=False)
        assert refused.returncode != 0, refused.stdout
        self._machine.ssh("sudo kproxy lab up --expose 0.0.0.0")
        until(lambda: subprocess.run(curl, capture_output=True, check=False).returncode == 0, "an answer", 60)
        answered = subprocess.run(curl, capture_output=True, check=False)
        assert answered.returncode == 0, answered
        assert json.loads(answered.stdout)["client"] in ("192.168.1.2", "10.244.1.1"), answered.stdout
        self._machine.ssh("sudo kproxy lab down")
        assert subprocess.run(curl, capture_output=True, check=False).returncode != 0

    def provision_twice(self) -> None:
        """Nothing on the machine's disk is newer than before, where things are installed."""
        look = (
            "find /etc /usr /vagrant/.venv -xdev -type f -printf '%T@ %p\\n' | grep -v -e __pycache__ -e /etc/pip.conf"
            " -e host-ca.crt | sort | md5sum; dpkg -l | md5sum; ls -l /usr/local/bin"
        )
        before = self._machine.script(look)
        began = time.monotonic()
        self._machine.vagrant("provision", seconds=300)
        took = time.monotonic() - began
        assert self._machine.script(look) == before
        assert took < 120, f"{took:.0f} s"

    def rsync_twice(self) -> None:
        """The machine's own environment is still there."""
        self._machine.vagrant("rsync", seconds=120)
        self._machine.ssh("test -x /vagrant/.venv/bin/kproxy && sudo kproxy --version")

    def no_br_netfilter(self) -> None:
        """All of that went without br_netfilter."""
        assert "br_netfilter" not in self._machine.ssh("lsmod")

    def conditions(self) -> None:
        """Each condition that is the kernel's: a lab works, or what is missing is named."""
        self._machine.script((ROOT / "tests/vm/conditions").read_text(), 900)

    def packets(self) -> None:
        """The packet tests, on this kernel."""
        self._machine.ssh(
            "cd /vagrant && sudo make test PYTEST_ARGS='-q tests/dataplane/test_client_addresses.py'", 1500
        )

    def no_ipv6(self) -> None:
        """After a boot without IPv6 that is said, an IPv4 lab works, and others are refused."""
        self._machine.script("sed -i 's/console=tty0/ipv6.disable=1 &/' /boot/extlinux/extlinux.conf")
        self._machine.vagrant("reload", "--no-provision", seconds=600)
        seen = self._machine.script(f"""
            {KPROXY} lab check
            {KPROXY} lab up
            {KPROXY} apply -f /vagrant/manifests/nodeport --wait 60
            {KPROXY} verify --no-why
            {KPROXY} lab down
            {KPROXY} lab up --ip-family dual 2>&1 && exit 1
            {KPROXY} lab up --ip-family ipv6 2>&1 && exit 1
            echo both refused""")
        assert re.search(r"^IPv6 +limited", seen, re.MULTILINE), seen
        assert seen.count("this host lacks what the lab needs") == 2, seen
        assert "both refused" in seen, seen


def difference(one: Any, other: Any) -> str:
    """The first things that two states do not share."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
        return str([(key, one.get(key), other.get(key)) for key in sorted(keys)[:5]])
    return f"{one!r:.300} against {other!r:.300}"


def main() -> int:
    """Runs the whole test."""
    parser = argparse.ArgumentParser(description="boot, provision and use the machine of vagrant/")
    parser.add_argument("--keep-going", action="store_true", help="go on after a step that failed")
    parser.add_argument("--inside", type=int, default=-1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside < 0:
        return outside(["--keep-going"] if arguments.keep_going else [])
    return inside(arguments.inside, arguments.keep_going)


if __name__ == "__main__":
    sys.exit(main())
