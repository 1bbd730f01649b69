# The guard of one supervisor, for a POSIX shell: dash, bash, Busybox. It needs head, grep, tr, rmdir and sleep.
#
# $1 is the token of the supervisor's processes, $2 its cgroup or nothing. Standard input ends when the host ends. Descriptor 3 is
# the list of process groups, one number per line.
run=$1
cgroup=$2
trap '' HUP INT QUIT TERM TSTP TTIN TTOU PIPE USR1 USR2

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

# Looks at every process once. One pipeline reads all environments in a few milliseconds: head names the file of each, and not
# every grep (Busybox's does not) reads beyond a zero byte. A header right behind the blank line that ends the last one belongs
# to an empty environment. Both kinds are read again by themselves before anything is signalled, since such a line may also stand
# in an environment.
look() {
    look_at_leaderless
    head -n 1000000 /dev/null /proc/[0-9]*/environ | tr '\0' '\n' |
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
            *"$run."*) judge ;;
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

# kill(1) takes a group as `-N`; dash knows no `--`.
kill_groups() {
    while read -r group; do
        [ -n "$group" ] && kill -9 "-$group"
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
    kill_groups <&3
    hunt
    [ -n "$cgroup" ] && remove_cgroup
    exit 0
}

trap sweep URG
read -r never
sweep
