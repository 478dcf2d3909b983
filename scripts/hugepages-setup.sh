#!/usr/bin/env bash
# Makes huge pages ready for `plasma_store -h -d DIR`, or puts everything back with --undo.
#
# Four things are changed, each only if it is not as wanted already: the directory, the hugetlbfs
# mounted on it (owned by whoever called sudo), the group that may use huge pages, and the number of
# huge pages. What was there before is kept in a state file until --undo, also when a step fails.
# The store itself needs no root afterwards.

set -euo pipefail

readonly PROGRAM=${0##*/}
readonly STATE=/run/plasma-hugepages.state
readonly GROUP_FILE=/proc/sys/vm/hugetlb_shm_group
readonly PAGES_FILE=/proc/sys/vm/nr_hugepages
# More than this part of the available memory is refused: the kernel would take it all the same, and
# start to kill processes.
readonly AVAILABLE_PERCENT_MAX=90
# What the store takes when it is not told how much.
readonly DEFAULT_PERCENT=30

pages=
size=
mount_dir=
undo=false
dry_run=false

usage() {
    cat <<EOF
Usage: $PROGRAM [--pages N | --size BYTES] [--mount DIR] [--dry-run]
       $PROGRAM --undo [--dry-run]

Prepares huge pages for plasma_store. Needs root; the store does not. Then:
    plasma_store -h -d DIR -m BYTES

  --pages N     how many huge pages there shall be at least
  --size BYTES  the same in bytes, plain or like 500M (1000s) or 8GiB (1024s)
                default: $DEFAULT_PERCENT % of the memory, as plasma_store takes without -m
  --mount DIR   where the file system of huge pages is mounted
                default: /mnt/hugepages
  --undo        put back what was there before
  --dry-run     say what would be done and change nothing; needs no root
  --help        print this text

Exit code: 0 done, 1 the system refused or gave too few pages, 2 wrong arguments.
EOF
}

main() {
    parse_arguments "$@"
    if $undo; then
        need_root
        undo_all
        return
    fi
    local page_kb wanted
    page_kb=$(meminfo Hugepagesize)
    [[ -n $page_kb ]] || fail "this kernel has no huge pages (no Hugepagesize in /proc/meminfo)"
    wanted=$(wanted_pages "$page_kb")
    check_memory "$wanted" "$page_kb"
    need_root
    check_state
    save_state
    mount_file_system
    allow_group
    take_pages "$wanted" "$page_kb"
    $dry_run || say "ready: plasma_store -h -d $mount_dir -m $((wanted * page_kb * 1024))"
}

# ---- arguments ----------------------------------------------------------------------------------

parse_arguments() {
    while (($# > 0)); do
        case $1 in
            --pages | --size | --mount)
                set_value "$1" "${2-}"
                # The loop's own shift takes the other one.
                shift $(($# > 1))
                ;;
            --pages=* | --size=* | --mount=*)
                set_value "${1%%=*}" "${1#*=}"
                ;;
            --undo) undo=true ;;
            --dry-run) dry_run=true ;;
            --help)
                usage
                exit 0
                ;;
            *) usage_error "unknown argument '$1'" ;;
        esac
        shift
    done
    if $undo && [[ -n $pages$size$mount_dir ]]; then
        usage_error "--undo puts back everything and takes no --pages, --size or --mount"
    fi
    [[ -z $pages || -z $size ]] || usage_error "--pages and --size say the same: give one of them"
    mount_dir=${mount_dir:-/mnt/hugepages}
}

set_value() {
    [[ -n $2 ]] || usage_error "$1 needs a value"
    case $1 in
        --pages)
            # Nine digits keep every product below within 63 bits.
            [[ $2 =~ ^0*[1-9][0-9]{0,8}$ ]] ||
                usage_error "--pages '$2': expected a number from 1 to 999999999"
            pages=$((10#$2))
            ;;
        --size) size=$(bytes_of "$2") ;;
        --mount)
            [[ $2 =~ ^/[[:alnum:]._/@:+-]*$ ]] ||
                usage_error "--mount '$2': expected an absolute path of letters, digits and ._@:+-"
            mount_dir=$(realpath -ms -- "$2")
            [[ $mount_dir != / ]] || usage_error "--mount '$2': this is the root directory"
            ;;
    esac
}

# Prints the bytes that a text like 500M or 8GiB means.
bytes_of() {
    local expected="expected bytes, plain or like 500M or 8GiB"
    [[ $1 =~ ^([0-9]{1,15})([kKmMgGtT]?)([iI]?)[bB]?$ ]] || usage_error "--size '$1': $expected"
    local number=$((10#${BASH_REMATCH[1]})) unit=${BASH_REMATCH[2],} binary=${BASH_REMATCH[3]}
    [[ -n $unit || -z $binary ]] || usage_error "--size '$1': $expected"
    local base=1000 power=0
    [[ -z $binary ]] || base=1024
    case $unit in
        k) power=1 ;;
        m) power=2 ;;
        g) power=3 ;;
        t) power=4 ;;
    esac
    local factor=$((base ** power))
    ((number > 0)) || usage_error "--size '$1': there is no huge page that small"
    ((number <= (1 << 50) / factor)) || usage_error "--size '$1': more than 1 PiB"
    echo $((number * factor))
}

# Prints how many pages there shall be.
wanted_pages() {
    local page_bytes=$(($1 * 1024)) bytes
    if [[ -n $pages ]]; then
        echo "$pages"
        return
    fi
    bytes=${size:-$(($(meminfo MemTotal) * 1024 * DEFAULT_PERCENT / 100))}
    echo $(((bytes + page_bytes - 1) / page_bytes))
}

# ---- setting up ---------------------------------------------------------------------------------

check_memory() {
    local wanted=$1 page_kb=$2 present allowed_kb
    present=$(<"$PAGES_FILE")
    allowed_kb=$(($(meminfo MemAvailable) * AVAILABLE_PERCENT_MAX / 100))
    (((wanted - present) * page_kb <= allowed_kb)) || fail \
        "$wanted huge pages of $page_kb KiB are $((wanted * page_kb)) KiB; $present are there and" \
        "$AVAILABLE_PERCENT_MAX % of the available memory is $allowed_kb KiB; ask for fewer, or" \
        "free memory first"
}

# One setup at a time: the numbers to put back belong to the machine, not to a directory.
check_state() {
    [[ -e $STATE ]] || return 0
    local before
    before=$(state mount)
    [[ $before == "$mount_dir" ]] ||
        fail "huge pages are set up at $before already; run '$PROGRAM --undo' first"
}

save_state() {
    [[ ! -e $STATE ]] || return 0
    local topmost=$mount_dir made=
    while [[ ! -e $topmost ]]; do
        made=$topmost
        topmost=$(dirname -- "$topmost")
    done
    ! $dry_run || return 0
    # Complete or not at all: a half-written state would put half of it back.
    cat >"$STATE.new" <<EOF
mount=$mount_dir
made=$made
mounted=$(is_mounted && echo no || echo yes)
group_before=$(<"$GROUP_FILE")
group_after=$(<"$GROUP_FILE")
pages_before=$(<"$PAGES_FILE")
pages_after=$(<"$PAGES_FILE")
EOF
    mv -- "$STATE.new" "$STATE"
}

mount_file_system() {
    local uid gid
    uid=$(owner_uid)
    gid=$(owner_gid)
    if is_mounted; then
        local owner
        owner=$(stat -c %u -- "$mount_dir")
        [[ $owner == "$uid" ]] || fail "$mount_dir is a hugetlbfs of user $owner, not of $uid;" \
            "choose another directory with --mount"
        say "mount $mount_dir: is there already"
        return
    fi
    if [[ ! -d $mount_dir ]]; then
        change "directory $mount_dir: none -> made" mkdir -p -- "$mount_dir" ||
            fail "cannot make $mount_dir; choose another directory with --mount"
    elif [[ -n $(ls -A -- "$mount_dir") ]]; then
        fail "$mount_dir has files, which a mount would hide; choose another directory with --mount"
    fi
    change "mount $mount_dir: none -> hugetlbfs of user $uid, group $gid" \
        mount -t hugetlbfs -o "uid=$uid,gid=$gid,mode=0770" none "$mount_dir" ||
        fail "cannot mount: is this a container without the right to? '$PROGRAM --undo' puts back" \
            "what was done so far"
}

allow_group() {
    set_number "$GROUP_FILE" "$(owner_gid)"
    remember group_after "$(<"$GROUP_FILE")"
}

take_pages() {
    local wanted=$1 page_kb=$2 present
    present=$(<"$PAGES_FILE")
    if ((present >= wanted)); then
        # More may be in use by others, so the number is never lowered here.
        say "$PAGES_FILE: $present, at least $wanted already"
    else
        set_number "$PAGES_FILE" "$wanted"
        ! $dry_run || return 0
        present=$(<"$PAGES_FILE")
        remember pages_after "$present"
        ((present >= wanted)) || fail "the kernel gave $present of $wanted huge pages of" \
            "$page_kb KiB, for it found no more memory in one piece; what helps: end programs" \
            "that use much memory, 'echo 1 > /proc/sys/vm/compact_memory' and run this again, ask" \
            "for fewer, or 'hugepages=$wanted' on the kernel's command line;" \
            "'$PROGRAM --undo' gives these back"
    fi
    local free
    free=$(meminfo HugePages_Free)
    ((free >= wanted)) || say "note: $free of $present huge pages are free, others are in use"
}

# ---- putting back -------------------------------------------------------------------------------

undo_all() {
    if [[ ! -e $STATE ]]; then
        say "nothing to undo: $STATE does not exist"
        return
    fi
    mount_dir=$(state mount)
    if [[ $(state mounted) == yes ]] && is_mounted; then
        change "mount $mount_dir: hugetlbfs -> none" umount -- "$mount_dir" ||
            fail "cannot unmount $mount_dir: end the programs that use it (fuser -m $mount_dir)"
    fi
    remove_directories
    put_back "$PAGES_FILE" pages
    put_back "$GROUP_FILE" group
    ! $dry_run || return 0
    local total before
    total=$(meminfo HugePages_Total)
    before=$(state pages_before)
    ((total <= before)) || say "note: there are $total huge pages, not $before: others asked for" \
        "them, or programs use them still and they go when these end"
    rm -- "$STATE"
}

remove_directories() {
    local made directory=$mount_dir
    made=$(state made)
    [[ -n $made ]] || return 0
    while [[ $directory == "$made"* && -d $directory ]]; do
        change "directory $directory: made -> none" rmdir -- "$directory" || {
            say "directory $directory: is not empty, stays"
            return
        }
        directory=$(dirname -- "$directory")
    done
}

# Puts a number back unless somebody else has changed it since.
put_back() {
    local file=$1 name=$2 now
    now=$(<"$file")
    if [[ $now != "$(state "${name}_after")" ]]; then
        say "$file: $now, changed by somebody else since, stays"
    else
        set_number "$file" "$(state "${name}_before")"
    fi
}

# ---- helpers ------------------------------------------------------------------------------------

set_number() {
    local file=$1 after=$2 before
    before=$(<"$file")
    if [[ $before == "$after" ]]; then
        say "$file: $after already"
        return
    fi
    change "$file: $before -> $after" write "$file" "$after" ||
        fail "cannot write to $file: is this a container without the right to?"
}

write() {
    echo "$2" >"$1"
}

# Says what is done, and does it.
change() {
    local text=$1
    shift
    if $dry_run; then
        say "would change $text"
        return
    fi
    say "$text"
    "$@"
}

owner_uid() {
    echo "${SUDO_UID:-$(id -u)}"
}

owner_gid() {
    echo "${SUDO_GID:-$(id -g)}"
}

is_mounted() {
    [[ -d $mount_dir ]] && awk -v directory="$mount_dir" \
        '$2 == directory && $3 == "hugetlbfs" { found = 1 } END { exit !found }' /proc/mounts
}

# The number behind a name in /proc/meminfo; nothing if it is not there.
meminfo() {
    awk -v name="$1:" '$1 == name { print $2 }' /proc/meminfo
}

state() {
    sed -n "s/^$1=//p" "$STATE"
}

remember() {
    ! $dry_run || return 0
    sed -i "s/^$1=.*/$1=$2/" "$STATE"
}

need_root() {
    $dry_run || ((EUID == 0)) || fail "this needs root: sudo $0 (--dry-run does not)"
}

say() {
    echo "$PROGRAM: $*"
}

fail() {
    echo "$PROGRAM: $*" >&2
    exit 1
}

usage_error() {
    echo "$PROGRAM: $1; see $PROGRAM --help" >&2
    exit 2
}

main "$@"
