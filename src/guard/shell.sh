# The guard of one supervisor, for a POSIX shell: dash, bash, Busybox. It needs grep, head, rm, rmdir, sleep and tr, and cat with
# a jobserver.
#
# fd 3 delivers four lines: the token of the supervisor's processes, its cgroup or nothing, the PID of the host, and "jobserver" or
# nothing. End of file follows when the host ends. fd 4 is the list of what is killed and removed with the host, and fd 5 its writing
# end. With a jobserver, fd 6 delivers the tokens that the host holds, and fd 7 takes them back. Standard output receives two lines:
# "ready" once the end of the host will be noticed, and "tested"; or an error instead.
trap '' HUP INT QUIT TERM TSTP TTIN TTOU PIPE USR1 USR2
IFS= read -r token <&3
IFS= read -r cgroup <&3
read -r host <&3
read -r jobserver <&3
run=$token

# Whether /proc exists and shows this PID namespace. After unshare(1) it can show another one, with other PIDs.
has_proc() {
    read -r number rest </proc/self/stat && [ "$number" = $$ ]
}

# Reads /proc/$process/stat with built-in commands only. Succeeds if the process has no memory (a zombie, a kernel thread), or is
# not in exec and has an empty environment: start_code (field 26) is set after env_start and env_end (50, 51).
has_no_environment() {
    read -r fields <"$task/stat" || return 0
    set -- ${fields##*) }
    [ $# -ge 49 ] && [ "${24}" -ne 0 ] && [ "${48}" = "${49}" ]
}

# Sets $task to a thread of $process that has memory. The main thread has none after pthread_exit.
find_task() {
    task=/proc/$process
    [ -e "$task/exe" ] && return 0
    for task in "/proc/$process"/task/[0-9]*; do
        [ "${task##*/}" = "$process" ] || { [ -e "$task/exe" ] && return 0; }
    done
    return 1
}

# Whether the environment of $process contains the token. A process in exec shows no environment, so it is read again. If it stays
# empty, "in-exec" is printed.
has_token() {
    tries=0
    while [ $tries -lt 50 ]; do
        find_task || return 1
        has_no_environment && return 1
        case $(tr '\0' '\n' <"$task/environ") in
        *"$run."*) return 0 ;;
        ?*) return 1 ;;
        esac
        tries=$((tries + 1))
    done
    echo in-exec
    return 1
}

# Kills $process if it has the token, and prints its PID.
kill_if_token() {
    has_token && kill -9 "$process" && echo "$process"
}

# Checks the processes whose main thread has ended: /proc/PID/environ is not readable then, task/TID/environ is.
scan_leaderless() {
    for process in /proc/[0-9]*; do
        [ -e "$process/exe" ] && continue
        set -- "$process"/task/[0-9]*
        process=${process#/proc/}
        [ $# -gt 1 ] && kill_if_token
    done
}

# Scans every process once.
scan() {
    scan_leaderless
    kill_all_with_token /proc/[0-9]*/environ
}

# Checks the processes with these environ files. One pipeline reads all of them in a few milliseconds: head prints the name of each
# file, and not every grep (not that of Busybox) reads beyond a zero byte. A header directly behind the blank line that ends the
# last file belongs to an empty environment. Candidates are read again one by one before anything is signalled, since an
# environment can contain such a line too.
kill_all_with_token() {
    head -n 1000000 /dev/null "$@" | tr '\0' '\n' |
        grep -nF -e '==> /proc/' -e PIPEWRIGHT_TREE= | {
        process=
        while read -r line; do
            number=${line%%:*}
            case ${line#*:} in
            '==> /proc/'*)
                [ -n "$process" ] && [ $((number - at)) -eq 2 ] && kill_if_token
                at=$number
                process=${line#*/proc/}
                process=${process%%/*}
                ;;
            *"$run."*)
                [ -n "$process" ] && kill_if_token
                process=
                ;;
            esac
        done
        [ -n "$process" ] && kill_if_token
    }
}

# Scans until several consecutive scans have found nothing. A process that stays in exec does not keep it from ending.
scan_until_quiet() {
    quiet=0
    in_exec=0
    scans=0
    while [ $quiet -lt 4 ] && [ $scans -lt 1000 ]; do
        scans=$((scans + 1))
        case $(scan) in
        *[0-9]*) quiet=0 ;;
        *in-exec*) in_exec=$((in_exec + 1)) && [ $in_exec -gt 20 ] && quiet=$((quiet + 1)) ;;
        *) quiet=$((quiet + 1)) ;;
        esac
    done
}

# `+N` adds a group, `-N` removes it, `=` removes all; `/PATH` is the directory of the host's sockets; `alive` says that the host goes on,
# and keeps its tokens. The list ends with the line
# written here: end of file does not occur while a fork of the host holds the writing end. kill takes a group as `-N`; dash does not
# support `--`.
kill_groups() {
    groups=
    directory=
    alive=
    epoch=0
    echo end >&5
    while IFS= read -r entry <&4; do
        case $entry in
        end) break ;;
        =) epoch=$((epoch + 1)) ;;
        +*) eval "group_${entry#+}=$epoch" && groups="$groups ${entry#+}" ;;
        -*) eval "group_${entry#-}=" ;;
        alive) alive=1 ;;
        /*) directory=$entry ;;
        esac
    done
    for group in $groups; do
        eval "[ \"\$group_$group\" = $epoch ]" && kill -9 "-$group"
    done
}

remove_cgroup() {
    rounds=0
    while [ -d "$cgroup" ] && [ $rounds -lt 50 ]; do
        rmdir "$cgroup"/*/*/*/*/*/ "$cgroup"/*/*/*/*/ "$cgroup"/*/*/*/ "$cgroup"/*/*/ "$cgroup"/*/ "$cgroup"
        [ -d "$cgroup" ] && sleep 0.05
        rounds=$((rounds + 1))
    done
}

# Whether the host is the parent of this process, as long as it has not ended.
has_host() {
    read -r stat </proc/$$/stat || return 1
    set -- ${stat##*) }
    [ "$2" = "$host" ]
}

# Neither end blocks: the host may have a fork that holds the other end of fd 6.
return_tokens() {
    [ -n "$alive" ] && { has_host || ! has_proc; } && return
    cat <&6 >&7
}

cleanup() {
    trap '' URG
    [ -n "$cgroup" ] && echo 1 >"$cgroup/cgroup.kill"
    kill_groups
    # The host can end during the self-test, which changes $run.
    run=$token
    has_proc && scan_until_quiet
    [ -n "$jobserver" ] && return_tokens
    [ -n "$directory" ] && rm -rf "$directory"
    [ -n "$cgroup" ] && remove_cgroup
    exit 0
}

fail() {
    echo "$1"
    exit 1
}

# Tests what the cleanup relies on, since nothing can be reported once it runs. This part starts no process: the host waits for it.
test_tools() {
    missing=
    for tool in grep head rm rmdir sleep tr ${jobserver:+cat}; do
        command -v $tool >/dev/null || missing="$missing $tool"
    done
    [ -z "$missing" ] || fail "missing from $PATH:$missing"
    # The shell leads its group. SIGUSR1 has this number on x86 and ARM.
    signalled=
    trap 'signalled=1' USR1
    kill -10 "-$$"
    trap '' USR1
    [ -n "$signalled" ] || fail "kill cannot signal a process group by number"
}

# Finds and kills a process of its own as the cleanup does. The process has the host's token too, so that a cleanup during the test
# ends it.
test_search() {
    run=probe.$$
    PIPEWRIGHT_TREE=$run.$token. sleep 10 &
    probe=$!
    tries=0
    # Until its exec the process has the environment of the shell.
    while :; do
        case $(kill_all_with_token "/proc/$probe/environ") in
        *"$probe"*) break ;;
        esac
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "cannot find and kill a process by its environment with head, tr, grep and kill"
    done
    wait $probe
    run=$token
}

test_tools
echo pipewright-guard >/proc/self/comm
trap cleanup URG
if has_proc; then
    echo ready
    # The host may have ended before the trap was set.
    has_host || cleanup
    test_search
else
    echo ready without /proc
fi
echo tested
exec >&2
read -r never <&3
cleanup
