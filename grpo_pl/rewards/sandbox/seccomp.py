"""A seccomp filter in BPF: the system calls that a program in the sandbox may not use.

It can start no processes, open no sockets, signal and trace no process, mount nothing, change no mode or
owner of a file, and hold no memory that RLIMIT_AS does not see. See seccomp(2) and bpf(4) of Linux.
"""

import ctypes
import errno
import os
import platform
import struct

from grpo_pl.rewards.sandbox.kernel import call

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""`platform.machine()` -> AUDIT_ARCH of linux/audit.h."""
_DENIED = {
    "add_key": (248, 217), "bpf": (321, 280), "chmod": (90, None), "chown": (92, None), "chroot": (161, 51),
    "fanotify_init": (300, 262), "fchmod": (91, 52), "fchmodat": (268, 53), "fchown": (93, 55),
    "fchownat": (260, 54), "finit_module": (313, 273), "fork": (57, None), "fremovexattr": (199, 16),
    "fsconfig": (431, 431), "fsetxattr": (190, 7), "fsmount": (432, 432), "fsopen": (430, 430),
    "fspick": (433, 433), "futimesat": (261, None), "init_module": (175, 105), "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30), "kcmp": (312, 272), "keyctl": (250, 219), "kill": (62, 129),
    "lchown": (94, None), "lremovexattr": (198, 15), "lsetxattr": (189, 6), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "migrate_pages": (256, 238), "mount": (165, 40), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "move_pages": (279, 239), "mq_open": (240, 180), "msgget": (68, 186),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pivot_root": (155, 41), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "quotactl": (179, 60), "removexattr": (197, 14), "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "semget": (64, 190), "setns": (308, 268), "setpgid": (109, 154), "setpriority": (141, 140),
    "setsid": (112, 157), "setxattr": (188, 5), "shmat": (30, 196), "shmget": (29, 194), "socket": (41, 198),
    "swapon": (167, 224), "tkill": (200, 130), "truncate": (76, 45), "umount2": (166, 39),
    "unshare": (272, 97), "userfaultfd": (323, 282), "utime": (132, None), "utimensat": (280, 88),
    "utimes": (235, None), "vfork": (58, None),
}  # fmt: skip
"""System calls that fail with EPERM: their numbers on x86_64 and aarch64."""
_CLONE, _CLONE3, _PRCTL, _PRLIMIT, _TGKILL = (56, 220), (435, 435), (157, 167), (302, 261), (234, 131)
_CLONE_THREAD = 0x10000
_UNKNOWN = 452  # system calls from Linux 6.6 on, and those of the other ABI of x86_64

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _MODE_FILTER = 1, 22, 2


def is_known() -> bool:
    """Whether the system calls of this machine are known here."""
    return platform.machine() in _ARCHITECTURES


def install(*, threads: bool) -> None:
    """Put this process, and whatever it executes, under the filter for good; after PR_SET_NO_NEW_PRIVS."""
    program = _program(os.getpid(), _CLONE_THREAD if threads else 0)
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(instructions))
    call("prctl", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(header))


def _program(pid: int, clone_flag: int) -> list[tuple[int, int, int, int]]:
    """The filter as (operation, lines to skip if true, lines to skip if false, operand).

    `pid` is the process that runs under it; `clone` is allowed with this flag alone, never if it is 0.
    """
    column = list(_ARCHITECTURES).index(platform.machine())
    denied, absent = [_return(_ERRNO | errno.EPERM)], [_return(_ERRNO | errno.ENOSYS)]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),
        _return(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _UNKNOWN),
        *absent,
    ]
    numbers = [pair[column] for pair in _DENIED.values()]
    for number in numbers:
        if number is not None:
            program += [(_EQUAL, 0, 1, number), *denied]
    program += [(_EQUAL, 0, 1, _CLONE3[column]), *absent]  # libc falls back to clone
    for (operation, operand), pair in {
        (_ANY_BIT, clone_flag): _CLONE,
        (_EQUAL, 0): _PRLIMIT,  # its own limits
        (_EQUAL, pid): _TGKILL,  # raise() and abort()
        (_AT_LEAST, _PR_SET_PDEATHSIG + 1): _PRCTL,  # it dies with its parent
    }.items():
        program += [(_EQUAL, 0, 4, pair[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (operation, 1, 0, operand)]
        program += [*denied, _return(_ALLOW)]
    return [*program, _return(_ALLOW)]


def _return(action: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, action)
