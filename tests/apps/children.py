"""Counts requests, and has children in all the ways an application may. PATH names the function; answers in JSON."""

import concurrent.futures
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys

from zcluster import Counter, worker
from zcluster.errors import ClusterError

requests = Counter("requests")
kept = []  # children that live on, so that their objects are not collected

LIST_FDS = """
import json, os, sys
print(json.dumps([os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                  and os.path.lexists(f"/proc/self/fd/{fd}")]))
"""
WAIT_FOR_EVER = "import signal\nwhile True: signal.pause()"


def open_files():
    """What this process has open, beyond the standard three and the listing itself."""
    found = []
    for fd in sorted(int(entry) for entry in os.listdir("/proc/self/fd")):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return found[3:]


def square(number):
    return number * number, os.getpid()


def run(_):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid(), 6 * 7)"], capture_output=True, check=True
    )
    return done.stdout.decode().split()[1]


def signals(_):
    """The signal masks of a program we execute."""
    done = subprocess.run(["cat", "/proc/self/status"], capture_output=True, check=True, text=True)
    return {line.split(":")[0]: line.split()[1] for line in done.stdout.splitlines() if line.startswith("Sig")}


def left_running(_):
    child = subprocess.Popen([sys.executable, "-c", WAIT_FOR_EVER])
    kept.append(child)
    return child.pid


def fds_of_subprocess(close_fds):
    command = [sys.executable, "-c", LIST_FDS]
    return json.loads(subprocess.run(command, capture_output=True, check=True, close_fds=bool(close_fds)).stdout)


def fds_of_shell(_):
    """The bluntest of all ways: everything that is inheritable goes along."""
    reader, writer = os.pipe()
    to_stdout = [(os.POSIX_SPAWN_DUP2, writer, 1)]
    os.posix_spawn("/bin/sh", ["sh", "-c", "ls -l /proc/self/fd"], os.environ, file_actions=to_stdout)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.wait()
    lines = [line.partition(" -> ") for line in text.splitlines() if " -> " in line]
    return [target for name, _, target in lines if int(name.split()[-1]) > 2]


def process(method):
    """multiprocessing.Process by fork, spawn or forkserver, with its answer through a pipe."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_tell_open_files, args=(theirs,))
    child.start()
    theirs.close()
    answer = ours.recv()
    ours.close()
    child.join()
    return {"fds": answer, "exitcode": child.exitcode}


def _tell_open_files(pipe):
    pipe.send(open_files())


def pool(method):
    with multiprocessing.get_context(method).Pool(2) as workers:
        return [value for value, _ in workers.map(square, range(10))]


def executor(method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as workers:
        return [value for value, _ in workers.map(square, range(10))]


def pools_left_running(_):
    """Pools that nobody closes: their processes, and what multiprocessing starts to help them."""
    by_fork = multiprocessing.get_context("fork").Pool(2)
    by_spawn = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    kept.extend([by_fork, by_spawn])
    return sorted({pid for _, pid in [*by_fork.map(square, range(20), chunksize=1), *by_spawn.map(square, range(3))]})


def _forked(in_child):
    """Fork; returns what `in_child` returns there, and its wait status."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, json.dumps(in_child()).encode())
        os._exit(7)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = json.loads(file.read())
    return {"answer": answer, "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def fork_and_exit(_):
    return _forked(open_files)


def fork_and_count(_):
    """What a counter and `worker` say in a child of ours."""

    def say():
        said = []
        for question in (requests.incr, lambda: requests.value, lambda: Counter("born in a child").incr()):
            try:
                said.append(question())
            except ClusterError as error:
                said.append(f"ClusterError: {error}")
        return [*said, bool(worker), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL]

    return _forked(say)


def fork_and_end(count):
    """End children the moment they are born; returns how they ended."""
    ends = []
    for _ in range(int(count)):
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        os.kill(pid, signal.SIGTERM)
        ends.append(_status_of(pid))
    return ends


def fork_twice(_):
    """A child that makes itself at home, and what of that its own child still finds."""

    def settle():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        files = [os.memfd_create(f"mine-{number}") for number in range(64)]
        return _forked(
            lambda: {
                "files": sum(os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:mine-") for fd in files),
                "handler": callable(signal.getsignal(signal.SIGTERM)),
            }
        )

    return _forked(settle)["answer"]["answer"]


def _status_of(pid):
    """Wait for a child that must not live on, but not for ever."""
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    ended = poller.poll(5000)
    os.close(pidfd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "it lives on"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_and_return(how):
    """The child leaves this function as if it were the worker."""
    pid = os.fork()
    if pid == 0:
        if how == "raise":
            raise ValueError("in the child")
        if how == "exit":
            sys.exit(5)
        return "the child's answer, which nobody may get"
    return _status_of(pid)


def hold(_):
    """A child that lives on when the answer has been given."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def generator(start_response, written):
    """The child comes into being, and leaves, in the middle of a response."""
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    if written:
        write(b"begun,")
    else:
        yield b"begun,"
    pid = os.fork()
    if pid == 0:
        return
    yield b"%d" % _status_of(pid)


def app(environ, start_response):
    path, argument = environ["PATH_INFO"].strip("/"), environ["QUERY_STRING"]
    if path == "generator":
        return generator(start_response, argument)
    if path:
        body = json.dumps(globals()[path](argument)).encode()
    else:
        body = b"%d" % requests.incr()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
