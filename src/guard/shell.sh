# The guard of one supervisor, for a POSIX shell: dash, bash, Busybox. It needs grep, head, rm, rmdir, sleep and tr.
#
# Descriptor 3 gives three lines, the token of the supervisor's processes, its cgroup or nothing, and the number of the host's
# process; then it ends with the host. Descriptor 4 is the list of what goes with the host, and 5 its other end. Standard output is
# for two lines: "ready" once the end of the host is noticed, and "tested"; or what is missing instead.
trap '' HUP INT QUIT TERM TSTP TTIN TTOU PIPE USR1 USR2
IFS= read -r token <&3
IFS= read -r cgroup <&3
read -r host <&3
run=$token

# Whether /proc is there and has the numbers of this pid namespace. After unshare(1) it may have those of another: the processes that
# it shows then have other numbers here.
has_proc() {
    read -r number rest </proc/self/stat && [ "$number" = $$ ]
}

# Reads /proc/$process/stat with built-in commands only. Succeeds where the process has no memory (a zombie, a thread of the
# kernel), or is not in the middle of an exec and was given no environment: start_code (field 26) is set after env_start and
# env_end (50, 51) are.
has_no_environment() {
    read -r fields <"$task/stat" || return 0
    set -- ${fields##*) }
    [ $# -ge 49 ] && [ "${24}" -ne 0 ] && [ "${48}" = "${49}" ]
}

# Sets $task to a thread of $process that has memory. The main thread has none once it has called pthread_exit.
find_task() {
    task=/proc/$process
    [ -e "$task/exe" ] && return 0
    for task in "/proc/$process"/task/[0-9]*; do
        [ "${task##*/}" = "$process" ] || { [ -e "$task/exe" ] && return 0; }
    done
    return 1
}

# Whether $process carries the token. A process in the middle of an exec shows no environment, so it is read again. Where it
# stays empty, "hidden" is printed.
is_carrier() {
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
    echo hidden
    return 1
}

# Kills $process if it carries the token, and prints its number.
judge() {
    is_carrier && kill -9 "$process" && echo "$process"
}

# Judges the processes whose main thread has ended: /proc/PID/environ is not readable there, task/TID/environ is.
look_at_leaderless() {
    for process in /proc/[0-9]*; do
        [ -e "$process/exe" ] && continue
        set -- "$process"/task/[0-9]*
        process=${process#/proc/}
        [ $# -gt 1 ] && judge
    done
}

# Looks at every process once.
look() {
    look_at_leaderless
    judge_all /proc/[0-9]*/environ
}

# Judges the processes whose environments these files are. One pipeline reads all of them in a few milliseconds: head names the
# file of each, and not every grep (Busybox's does not) reads beyond a zero byte. A header right behind the blank line that ends
# the last one belongs to an empty environment. Both kinds are read again by themselves before anything is signalled, since such
# a line may also stand in an environment.
judge_all() {
    head -n 1000000 /dev/null "$@" | tr '\0' '\n' |
        grep -nF -e '==> /proc/' -e PIPEWRIGHT_TREE= | {
        process=
        while read -r line; do
            number=${line%%:*}
            case ${line#*:} in
            '==> /proc/'*)
                [ -n "$process" ] && [ $((number - at)) -eq 2 ] && judge
                at=$number
                process=${line#*/proc/}
                process=${process%%/*}
                ;;
            *"$run."*)
                [ -n "$process" ] && judge
                process=
                ;;
            esac
        done
        [ -n "$process" ] && judge
    }
}

# Looks until several looks in turn have found nothing. A process that stays hidden does not keep it going for ever.
hunt() {
    quiet=0
    hidden=0
    looks=0
    while [ $quiet -lt 4 ] && [ $looks -lt 1000 ]; do
        looks=$((looks + 1))
        case $(look) in
        *[0-9]*) quiet=0 ;;
        *hidden*) hidden=$((hidden + 1)) && [ $hidden -gt 20 ] && quiet=$((quiet + 1)) ;;
        *) quiet=$((quiet + 1)) ;;
        esac
    done
}

# `+N` adds a group, `-N` removes it, `=` removes all; `/PATH` is the directory of the host's sockets. The list ends with the line
# that is written here: the end of the pipe does not come while a fork of the host holds its writing end. kill takes a group as
# `-N`; dash knows no `--`.
kill_groups() {
    groups=
    directory=
    epoch=0
    echo end >&5
    while IFS= read -r entry <&4; do
        case $entry in
        end) break ;;
        =) epoch=$((epoch + 1)) ;;
        +*) eval "group_${entry#+}=$epoch" && groups="$groups ${entry#+}" ;;
        -*) eval "group_${entry#-}=" ;;
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

sweep() {
    trap '' URG
    [ -n "$cgroup" ] && echo 1 >"$cgroup/cgroup.kill"
    kill_groups
    # Also where the end of the host comes in the middle of the test.
    run=$token
    has_proc && hunt
    [ -n "$directory" ] && rm -rf "$directory"
    [ -n "$cgroup" ] && remove_cgroup
    exit 0
}

fail() {
    echo "$1"
    exit 1
}

# What the sweep relies on, since nothing can be reported when that is needed. This part starts no process: the host waits for it.
test_tools() {
    missing=
    for tool in grep head rm rmdir sleep tr; do
        command -v $tool >/dev/null || missing="$missing $tool"
    done
    [ -z "$missing" ] || fail "missing from $PATH:$missing"
    # The shell leads its group. SIGUSR1 has this number on x86 and ARM.
    signalled=
    trap 'signalled=1' USR1
    kill -10 "-$$"
    trap '' USR1
    [ -n "$signalled" ] || fail "its kill cannot signal a process group by number"
}

# Finds and kills a process of its own as the sweep does. That carries the host's token too: a sweep in the middle of the test ends
# it.
test_search() {
    run=probe.$$
    PIPEWRIGHT_TREE=$run.$token. sleep 10 &
    probe=$!
    tries=0
    # It has the shell's own environment until its exec.
    while :; do
        case $(judge_all "/proc/$probe/environ") in
        *"$probe"*) break ;;
        esac
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "it cannot find and kill a process by its environment with head, tr, grep and kill"
    done
    wait $probe
    run=$token
}

test_tools
echo pipewright-guard >/proc/self/comm
trap sweep URG
if has_proc && read -r stat </proc/$$/stat; then
    echo ready
    set -- ${stat##*) }
    # The host may have ended before the trap was there.
    [ "$2" = "$host" ] || sweep
    test_search
else
    echo ready without /proc
fi
echo tested
exec >&2
read -r never <&3
sweep
