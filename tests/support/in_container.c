/* in_container.c - runs a program with the system calls that Docker leaves it:  in_container PROGRAM ARGUMENT...
 * Stands for Docker's default seccomp profile (docs.docker.com/engine/security/seccomp, and seccomp/default.json of
 * moby/profiles): a list of what is allowed, everything else answered with EPERM, clone3 with ENOSYS so that the C
 * library falls back to clone. Here it is turned round: refused is what that list lacks for a process without
 * capabilities, of the calls that this project, Python or a C library might make. io_uring is lacking since Docker 25.
 * A container has no /dev/userfaultfd either, so a userfaultfd cannot be had from it here.
 * Exit status: the program's; 77 where no filter can be had (an emulator), 2 for a wrong call. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#define ERRNO(code) (SECCOMP_RET_ERRNO | ((code)&SECCOMP_RET_DATA))
#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, name))
#define ANSWER(what) BPF_STMT(BPF_RET | BPF_K, what)
#define REFUSED(name, code) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), ANSWER(ERRNO(code))
#define NAMESPACES 0x7e020000u /* CLONE_NEW* but the one of time */

int main(int argc, char **argv)
{
#ifdef ARCH
    struct sock_filter code[] = {
        FIELD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
        ANSWER(SECCOMP_RET_ALLOW), /* another architecture's calls have other numbers */
        FIELD(nr),
        REFUSED(userfaultfd, EPERM),
        REFUSED(io_uring_setup, EPERM),
        REFUSED(io_uring_enter, EPERM),
        REFUSED(io_uring_register, EPERM),
        REFUSED(clone3, ENOSYS),
        REFUSED(keyctl, EPERM),
        REFUSED(add_key, EPERM),
        REFUSED(request_key, EPERM),
        REFUSED(bpf, EPERM),
        REFUSED(perf_event_open, EPERM),
        REFUSED(kcmp, EPERM),
        REFUSED(process_madvise, EPERM),
        REFUSED(get_mempolicy, EPERM),
        REFUSED(set_mempolicy, EPERM),
        REFUSED(mbind, EPERM),
        REFUSED(move_pages, EPERM),
        REFUSED(migrate_pages, EPERM),
        REFUSED(mount, EPERM),
        REFUSED(umount2, EPERM),
        REFUSED(pivot_root, EPERM),
        REFUSED(setns, EPERM),
        REFUSED(unshare, EPERM),
        REFUSED(fanotify_init, EPERM),
        REFUSED(open_by_handle_at, EPERM),
        REFUSED(quotactl, EPERM),
        REFUSED(syslog, EPERM),
        REFUSED(acct, EPERM),
        REFUSED(vhangup, EPERM),
        REFUSED(init_module, EPERM),
        REFUSED(finit_module, EPERM),
        REFUSED(delete_module, EPERM),
        REFUSED(swapon, EPERM),
        REFUSED(swapoff, EPERM),
        REFUSED(reboot, EPERM),
        REFUSED(clock_settime, EPERM),
        REFUSED(settimeofday, EPERM),
        REFUSED(sethostname, EPERM),
        REFUSED(setdomainname, EPERM),
        /* by argument, whose low half is the first on these machines */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4),
        FIELD(args[0]),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NAMESPACES, 0, 1),
        ANSWER(ERRNO(EPERM)),
        ANSWER(SECCOMP_RET_ALLOW),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
        FIELD(args[1]),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, USERFAULTFD_IOC_NEW, 0, 1),
        ANSWER(ERRNO(EPERM)),
        ANSWER(SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    bool filtered = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
#else
    bool filtered = false;
#endif
    if (argc < 2) {
        fprintf(stderr, "in_container: use in_container PROGRAM ARGUMENT...\n");
        return 2;
    }
    if (!filtered) {
        fprintf(stderr, "in_container: no seccomp filter can be had here\n");
        return 77;
    }
    execvp(argv[1], argv + 1);
    fprintf(stderr, "in_container: %s: %s\n", argv[1], strerror(errno));
    return 127;
}
