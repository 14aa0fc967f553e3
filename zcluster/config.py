"""Every option of a cluster, declared once: its name, type, limits, default, help text and command line flags.

Invariant: a `Config` that `make_config` returned is usable as it stands. Nothing here reads the environment, the
file system or the clock; `resolution` does that and passes in what it found.

The command line, the variables and the keys of a file are derived from this class (`options()`), so an option cannot
exist in one place only. Times are seconds; their lower limits are low enough for tests to run a whole cluster at a
tenth of its usual periods or less.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

from zcluster.addresses import ADDRESS_FORMS
from zcluster.configcheck import check
from zcluster.describing import choice as _choice
from zcluster.describing import number as _number
from zcluster.describing import seconds as _seconds
from zcluster.describing import switch as _switch
from zcluster.describing import text as _text
from zcluster.errors import ConfigError
from zcluster.option import Option, field_of, misfit, nearest

_LISTENING: Final = "the sockets stay open from start to end"
_LEDGER: Final = "the ledger is made once, at the start"
_PERIODS: Final = "processes of both generations and their judges have to agree on it"
_SURROUNDINGS: Final = "every process has it from its start"
_LOG: Final = "it is one log for all processes, and some outlive a reload"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of one cluster. Immutable, so any thread may read it; make one with `make_config`."""

    app: Annotated[
        str, _text((), "The WSGI application: MODULE:ATTRIBUTE, or MODULE:FACTORY() to call.", "APP", least=1)
    ]
    # gunicorn's default; the loopback, so that nothing is published by accident
    bind: Annotated[
        tuple[str, ...],
        _text(
            ("--bind", "-b"),
            f"Address to listen on: {ADDRESS_FORMS}; may be repeated, port 0 picks a free one.",
            "ADDR",
            "PORT",
            least=1,
            fixed=_LISTENING,
        ),
    ] = ("127.0.0.1:8000",)
    # auto: one program on every core is what this is for
    workers: Annotated[
        int,
        _number(
            ("--workers", "-w"),
            0,
            2048,
            "Number of workers, or 'auto': one per CPU this process may use (affinity and cgroup).",
            "N|auto",
            "WEB_CONCURRENCY",
        ),
    ] = 0
    name: Annotated[
        str, _text("--name", "Name of the cluster; default: the app's module.", "NAME", fixed="it is found by it")
    ] = ""
    state: Annotated[
        str,
        _text(
            "--state",
            "Directory in which the counters outlive the cluster; default: they start at zero.",
            "DIR",
            fixed=_LEDGER,
        ),
    ] = ""
    run_dir: Annotated[
        str, _text("--run-dir", "tmpfs directory for sockets and shared memory.", "DIR", fixed="it is found there")
    ] = ""  # the launcher then takes /dev/shm: tmpfs everywhere, also in read-only containers
    hooks: Annotated[
        str,
        _text(
            "--hooks",
            "Class whose functions are called at the turns of the cluster's life: MODULE:CLASS; see zcluster.Hooks.",
            "MODULE:CLASS",
            fixed="the process that calls them outlives a reload",
        ),
    ] = ""
    preload: Annotated[
        Literal["auto", "on", "off"],
        _choice(
            ("--preload", "--no-preload"),
            "Import the app once before the workers are forked, or in each worker; default: once if that is safe.",
        ),
    ] = "auto"
    # gunicorn's; the kernel lowers it to net.core.somaxconn (4096 since Linux 5.4)
    backlog: Annotated[
        int, _number("--backlog", 1, 65535, "Connections the kernel keeps waiting per address.", fixed=_LISTENING)
    ] = 2048
    # large apps import for tens of seconds on a cold disk; Puma's worker_boot_timeout is 60 as well
    boot_timeout_s: Annotated[
        float, _seconds("--boot-timeout", 0.05, 86400, "A worker not ready this long after its order is killed.")
    ] = 60.0
    # none: which path means anything, only the app knows
    health_path: Annotated[
        str,
        _text(
            "--health-path",
            "A new worker serves when it has answered a GET on this path with 200; default: at once.",
            "PATH",
        ),
    ] = ""
    # none: it is for who has a load balancer in front that has to notice
    drain_delay_s: Annotated[
        float, _seconds("--drain-delay", 0, 3600, "A graceful stop begins this long after it was asked for.")
    ] = 0.0
    # gunicorn's, and the grace period of Kubernetes
    graceful_timeout_s: Annotated[
        float, _seconds("--graceful-timeout", 0.01, 86400, "A draining worker is killed after this time.")
    ] = 30.0
    # someone sits in front of it and pressed Ctrl-C
    quick_timeout_s: Annotated[
        float, _seconds("--quick-timeout", 0.01, 3600, "The same after a quick stop (INT, QUIT, stop --quick).")
    ] = 1.0
    # Node's; long enough for a page and its parts, short enough not to hoard connections
    keep_alive_s: Annotated[
        float, _seconds("--keep-alive", 0.01, 3600, "An idle connection waits this long for its next request.")
    ] = 5.0
    # off: what is too long only its operator knows; the flag alone means what gunicorn has by default
    timeout_s: Annotated[
        float,
        _seconds(
            ("--timeout", "-t"),
            0,
            86400,
            "A request this long in the app, with nothing sent or received, is logged with its stack; 0: none.",
            alone="30",
        ),
    ] = 0.0
    # what was only slow ends soon after the limit; what hangs is not to hold a thread for much longer than that
    timeout_grace_s: Annotated[
        float,
        _seconds("--timeout-grace", 0.01, 86400, "So long after --timeout the worker is replaced, start-first."),
    ] = 5.0
    # gunicorn's worker timeout; but here a slow request is no hang, only a loop that stands still
    hang_timeout_s: Annotated[
        float,
        _seconds(
            "--hang-timeout", 0.1, 86400, "A worker without a sign of life this long is killed.", fixed=_PERIODS
        ),
    ] = 30.0
    # ten beats before a worker is suspect, thirty before it is hung
    heartbeat_s: Annotated[
        float, _seconds("--heartbeat", 0.01, 60, "Period of heartbeats between master and workers.", fixed=_PERIODS)
    ] = 1.0
    # a store costs nothing; four times finer than the heartbeat it is weighed against
    ledger_tick_s: Annotated[
        float,
        _seconds(
            "--ledger-tick", 0.01, 10, "Period of ticks in shared memory, the second sign of life.", fixed=_PERIODS
        ),
    ] = 0.25
    # twice the workers' limit: nothing waits for the master, and a wrong verdict costs an epoch
    master_timeout_s: Annotated[
        float,
        _seconds(
            "--master-timeout", 0.1, 86400, "A master whose tick stands still this long is replaced.", fixed=_PERIODS
        ),
    ] = 60.0
    # of the 5 s a new start waits for an older instance of its name, 2 s remain for killing and reaping
    orphan_timeout_s: Annotated[
        float,
        _seconds(
            "--orphan-timeout", 0.01, 3600, "Workers drain this long when the launcher is gone.", fixed=_PERIODS
        ),
    ] = 3.0
    # faulthandler needs microseconds, but the worker may have to be scheduled and its pages read back
    dump_grace_s: Annotated[
        float, _seconds("--dump-grace", 0.01, 60, "Time a hung worker has to write its stacks before it is killed.")
    ] = 0.5
    # never: a service that crashes now and then is better than none
    restart_limit: Annotated[
        int,
        _number(
            "--restart-limit",
            0,
            1_000_000_000,
            "Stop with exit code 5 when more workers than this have crashed; 0: never.",
        ),
    ] = 0
    # the three limits: none; a leak is better found than recycled
    max_requests: Annotated[
        int,
        _number("--max-requests", 0, 1_000_000_000, "Replace a worker after so many requests; 0: never."),
    ] = 0
    max_requests_jitter: Annotated[
        int,
        _number("--max-requests-jitter", 0, 1_000_000_000, "Up to so many more, different for each worker."),
    ] = 0
    max_rss_mib: Annotated[
        int,
        _number("--max-rss", 0, 1 << 30, "Replace a worker that has more resident memory, in MiB; 0: never."),
    ] = 0
    max_age_s: Annotated[
        float,
        _seconds("--max-age", 0, 1_000_000_000, "Replace a worker that is older, up to a tenth more; 0: never."),
    ] = 0.0
    # one write and two fsyncs per second at most: Redis' appendfsync everysec makes the same bargain
    checkpoint_s: Annotated[
        float,
        _seconds(
            "--checkpoint",
            0.01,
            3600,
            "Period of the checkpoints in --state DIR.",
            fixed="the service that writes them outlives a reload",
        ),
    ] = 1.0
    # 256 workers and a replacement for each; lanes never used cost tmpfs pages (4 KiB each), not time
    lanes: Annotated[
        int, _number("--lanes", 4, 4096, "Writers the ledger has room for: two per worker.", fixed=_LEDGER)
    ] = 512
    # 8 bytes each per lane: 1 MiB of cells with the default lanes
    counters: Annotated[int, _number("--counters", 1, 4096, "Counters the ledger has room for.", fixed=_LEDGER)] = 256
    # Apache's; RFC 9112 section 3 asks for 8000 at least
    limit_request_line: Annotated[
        int, _number("--limit-request-line", 16, 65536, "Longest request line; longer: 414.", "BYTES")
    ] = 8190
    # Apache's and gunicorn's
    limit_request_fields: Annotated[
        int, _number("--limit-request-fields", 1, 32768, "Most header fields of a request; more: 431.")
    ] = 100
    # Apache's and gunicorn's, large enough for a Kerberos ticket; the second spelling is gunicorn's
    limit_request_field_size: Annotated[
        int,
        _number(
            ("--limit-request-field-size", "--limit-request-field_size"),
            16,
            65536,
            "Longest header field; longer: 431.",
            "BYTES",
        ),
    ] = 8190
    # a photo album or a backup, not a disk: what one client may make a worker store
    limit_request_body: Annotated[
        int, _number("--limit-request-body", 0, 1 << 50, "Longest request body; longer: 413.", "BYTES")
    ] = 1 << 30
    # the whole head: RFC 9110 knows no minimum, and a browser on the worst line needs two seconds
    header_timeout_s: Annotated[
        float,
        _seconds("--header-timeout", 0.01, 3600, "A request's head is complete this long after its first byte."),
    ] = 10.0
    # per KiB: slower than any modem, and yet an end to clients that do not go on at all
    body_timeout_s: Annotated[
        float, _seconds("--body-timeout", 0.01, 86400, "A request's body gains another KiB within this time.")
    ] = 30.0
    write_timeout_s: Annotated[
        float, _seconds("--write-timeout", 0.01, 86400, "A client takes another KiB of a response within this time.")
    ] = 30.0
    # Threads wait, they do not compute: eight requests that wait for a database keep a core busy
    threads: Annotated[
        int, _number("--threads", 1, 1024, "Threads of a worker that run requests; 1: strictly one at a time.")
    ] = 8
    # ten times what gunicorn allows; an idle one costs a descriptor and 3 KiB
    worker_connections: Annotated[
        int, _number("--worker-connections", 1, 1_000_000, "Most connections a worker holds at once; others wait.")
    ] = 10_000
    # what the umask leaves, as every program that makes a file
    unix_mode: Annotated[
        str,
        _text(
            "--unix-mode",
            "Permissions of Unix sockets, octal (0660); default: what the umask leaves.",
            "MODE",
            fixed=_LISTENING,
        ),
    ] = ""
    certfile: Annotated[
        str, _text("--certfile", "Speak TLS with this certificate (PEM, chain included).", "FILE")
    ] = ""
    keyfile: Annotated[
        str, _text("--keyfile", "The certificate's private key, if it is not in --certfile.", "FILE")
    ] = ""
    # nobody: whoever is believed may forge the address of every client
    forwarded_allow_ips: Annotated[
        str,
        _text(
            "--forwarded-allow-ips",
            "Proxies whose X-Forwarded-* fields are believed: addresses, networks, 'unix', or '*'; default: none.",
            "IPS",
            "FORWARDED_ALLOW_IPS",
        ),
    ] = ""
    access_logfile: Annotated[
        str,
        _text("--access-logfile", "One line per request goes to this file, '-': to stdout; default: none.", "FILE"),
    ] = ""
    # gunicorn's default, which every log reader knows as "combined"
    access_logformat: Annotated[
        str,
        _text("--access-logformat", "Format of these lines, in gunicorn's atoms, or 'json'.", "FORMAT", least=1),
    ] = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
    user: Annotated[
        str,
        _text(("--user", "-u"), "Once the sockets are bound, be this user; needs root.", "USER", fixed=_SURROUNDINGS),
    ] = ""
    group: Annotated[
        str, _text(("--group", "-g"), "And in this group; default: those of --user.", "GROUP", fixed=_SURROUNDINGS)
    ] = ""
    umask: Annotated[
        str, _text(("--umask", "-m"), "Umask of all processes, octal (027).", "MODE", fixed=_SURROUNDINGS)
    ] = ""
    chdir: Annotated[
        str, _text("--chdir", "Working directory; the app is imported from there.", "DIR", fixed=_SURROUNDINGS)
    ] = ""
    env: Annotated[
        tuple[str, ...],
        _text(("--env", "-e"), "Set a variable for the app; may be repeated.", "NAME=VALUE", fixed=_SURROUNDINGS),
    ] = ()
    pidfile: Annotated[
        str, _text(("--pid", "-p"), "Write the launcher's process id into this file.", "FILE", fixed=_SURROUNDINGS)
    ] = ""
    reload: Annotated[
        bool, _switch("--reload", "For development: reload when code changes, show code that fails.", _SURROUNDINGS)
    ] = False
    reload_extra_file: Annotated[
        tuple[str, ...],
        _text(
            "--reload-extra-file", "Watch this file or directory too; may be repeated.", "PATH", fixed=_SURROUNDINGS
        ),
    ] = ()
    # stderr, where a supervisor, a container or a shell looks for it; the second spelling is gunicorn's
    log_file: Annotated[
        str,
        _text(("--log-file", "--error-logfile"), "Our log goes to this file, '-': to stderr.", "FILE", "", 1, _LOG),
    ] = "-"
    log_format: Annotated[
        Literal["text", "json"],
        _choice("--log-format", "Lines of our log: text, or one JSON object each.", "FORMAT", fixed=_LOG),
    ] = "text"
    # gunicorn's: what an app prints is its own, unless it is asked for
    capture_output: Annotated[
        bool,
        _switch(
            "--capture-output",
            "What workers write to stdout and stderr goes line by line into our log, with their prefix.",
            fixed="its pipes belong to the workers for life",
        ),
    ] = False
    # deaths, replacements, starts and stops; nothing per request
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        _choice("--log-level", "Least severity that is logged.", "LEVEL"),
    ] = "info"


def options() -> Iterator[Option]:
    """Yield every option in the order of declaration."""
    hints = get_type_hints(Config, include_extras=True)
    for field in msgspec.structs.fields(Config):
        kind, meta = get_args(hints[field.name])
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        multiple = get_origin(kind) is tuple
        yield Option(
            field=field.name,
            help=meta.description,
            default=None if field.required else field.default,
            choices=choices,
            type=str if choices or multiple else kind,
            multiple=multiple,
            least=meta.min_length if meta.ge is None else meta.ge,
            most=meta.max_length if meta.le is None else meta.le,
            **meta.extra,
        )


def make_config(**values: Any) -> Config:
    """Return the checked configuration for these options, named as the fields of `Config`.

    A single string is accepted for a list of them, and "auto" for `workers`. Raises `ConfigError` naming
    the option.
    """
    for field in ("bind", "env", "reload_extra_file"):
        if isinstance(values.get(field), str):
            values[field] = (values[field],)
    if values.get("workers") == "auto":
        values["workers"] = 0
    unknown = sorted(set(values) - set(Config.__struct_fields__))
    if unknown:
        near = nearest(unknown[0], Config.__struct_fields__)
        hint = f"; did you mean {near!r}?" if near else f"; known are {', '.join(Config.__struct_fields__)}"
        raise ConfigError(f"unknown option {unknown[0]!r}{hint}")
    try:
        config = msgspec.convert(values, Config)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        field = field_of(error, values)
        if not field:
            raise ConfigError(f"{error}; give at least the application (app)", "app") from None
        raise misfit(next(option for option in options() if option.field == field), values[field]) from None
    check(config)
    return config
