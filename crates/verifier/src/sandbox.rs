//! What the kernel lets this process do: read and write files, compute, and end.
//!
//! A bundle comes from somebody who may want more than a wrong verdict. Whoever took over the process by a bundle would find no
//! network, no other program and no memory that can be made executable; only files, and what can be reached by them. A list
//! of what is allowed, not of what is not: the kernel gains new ways out (io_uring opens sockets without `socket`), and x86-64
//! has second numbers for old ones.

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
#[error("no sandbox: {0}")]
pub struct Unavailable(String);

/// Leaves the calling thread, and all threads and nothing else that it starts from now on, with the system calls that a
/// verifier needs. Cannot be undone. What is not allowed fails as if the kernel did not have it (ENOSYS), so that libraries
/// take the older way that is allowed.
pub fn enter() -> Result<(), Unavailable> {
    imp::enter()
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod imp {
    use std::collections::BTreeMap;

    use seccompiler::SeccompCmpArgLen::{Dword, Qword};
    use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
    };

    use super::Unavailable;

    pub(super) fn enter() -> Result<(), Unavailable> {
        let filter = filter().map_err(|error| Unavailable(error.to_string()))?;
        apply_filter(&filter).map_err(|error| Unavailable(error.to_string()))
    }

    fn filter() -> Result<BpfProgram, BackendError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            ALLOWED.iter().chain(OF_PROCESSOR).map(|&call| (call, Vec::new())).collect();
        let mut only_if = |call, argument, length, operator, value: u64| {
            let rule = SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])?;
            rules.entry(call).or_default().push(rule);
            Ok::<_, BackendError>(())
        };
        // Threads, not processes. `clone3` has its flags in memory, where no filter sees them.
        let thread = libc::CLONE_THREAD as u64;
        only_if(libc::SYS_clone, 0, Qword, MaskedEq(thread), thread)?;
        // No new code.
        let executable = libc::PROT_EXEC as u64;
        only_if(libc::SYS_mmap, 2, Qword, MaskedEq(executable), 0)?;
        only_if(libc::SYS_mprotect, 2, Qword, MaskedEq(executable), 0)?;
        // Is this a terminal, and how wide? Not: type this into it.
        for question in [TCGETS, TCGETS2, TIOCGWINSZ] {
            only_if(libc::SYS_ioctl, 1, Dword, Eq, question)?;
        }
        only_if(libc::SYS_prctl, 0, Dword, Eq, libc::PR_SET_NAME as u64)?;
        // Itself alone: for `abort`, and for the size of its stack.
        only_if(libc::SYS_tgkill, 0, Dword, Eq, u64::from(std::process::id()))?;
        only_if(libc::SYS_prlimit64, 0, Dword, Eq, 0)?;

        let refused = SeccompAction::Errno(libc::ENOSYS as u32);
        let processor = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(rules, refused, SeccompAction::Allow, processor)?.try_into()
    }

    // `asm-generic/ioctls.h`, which both processors follow.
    const TCGETS: u64 = 0x5401;
    const TCGETS2: u64 = 0x802c_542a;
    const TIOCGWINSZ: u64 = 0x5413;

    /// What Rust's library, rayon, glibc and musl use for files, memory, threads and time.
    const ALLOWED: &[i64] = &[
        // Files.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_openat,
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        libc::SYS_getcwd,
        libc::SYS_mkdirat,
        libc::SYS_linkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_unlinkat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_ftruncate,
        libc::SYS_flock,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_umask,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        // Memory.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_getrandom,
        // Threads and time.
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_set_tid_address,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_membarrier,
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_gettimeofday,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_ppoll,
        libc::SYS_sysinfo,
        libc::SYS_uname,
        // Signals, its own, and the end.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];

    /// The older forms of some of these, which newer processors never had.
    #[cfg(target_arch = "x86_64")]
    const OF_PROCESSOR: &[i64] = &[
        libc::SYS_open,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_access,
        libc::SYS_readlink,
        libc::SYS_getdents,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_link,
        libc::SYS_rename,
        libc::SYS_unlink,
        libc::SYS_chmod,
        libc::SYS_poll,
        libc::SYS_getrlimit,
        libc::SYS_time,
    ];
    #[cfg(target_arch = "aarch64")]
    const OF_PROCESSOR: &[i64] = &[];
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod imp {
    use super::Unavailable;

    pub(super) fn enter() -> Result<(), Unavailable> {
        Err(Unavailable("only Linux on x86-64 and aarch64 has one".into()))
    }
}
