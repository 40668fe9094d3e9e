# An experiment as stages, for the scripts that source this file. They define
#   experiment           a function: its stages in order, as calls of `stage`
#   OUT REPORT           the run directory; what it ends in, to say so
#   settings             the names of the variables that say what the run is
# and end with `conduct "$@"`. A stage is skipped when what it makes is there, so the same script goes
# on where it stopped.

stage() {       # stage SECONDS MADE WHAT COMMAND...   (SECONDS: roughly, to know how much is left)
    local cost=$1 made=$2 what=$3
    shift 3
    [ -z "${seen[$made $what]:-}" ] || return 0             # another part asked for it, too
    seen[$made $what]=1
    number=$((number + 1))
    if [ $mode = count ]; then
        stages=$number
        [ -e "$made" ] || left=$((left + cost))
    elif [ $mode = dry-run ]; then
        printf '\n# %d. %s\n' $number "$what"
        printf ' %q' "$@" | cut -c2-
    elif [ ! -e "$made" ]; then
        local now=$SECONDS time_left=""
        # Seconds as they turn out, in seconds as stated: of the stages done in this session.
        if [ $spent -gt 0 ]; then
            time_left=", about $(((left * now / spent + 59) / 60)) min left"
        fi
        printf '\n[%d/%d] %s (%d:%02d gone%s)\n' $number $stages "$what" \
            $((now / 60)) $((now % 60)) "$time_left"
        if [ "$1" = python ] && [ -e "$(dirname "$made")/metrics.jsonl" ]; then
            set -- "$@" --resume
        fi
        "$@"
        left=$((left - cost)) spent=$((spent + cost))
    fi
}

conduct() {     # conduct [--dry-run]
    local name made_with
    if [ ${#} -gt 1 ] || [ ${#} = 1 ] && [ "$1" != --dry-run ]; then
        echo "$0 takes no argument but --dry-run; settings are variables: see its first lines" >&2
        exit 2
    fi
    declare -gA seen=()
    number=0 stages=0 left=0 spent=0 mode=count
    experiment
    number=0 mode=${1:+dry-run} seen=()
    if [ "$mode" = dry-run ]; then
        experiment
        exit
    fi
    mode=run
    mkdir -p "$OUT"
    made_with=$(for name in "${settings[@]}"; do
        declare -n value=$name
        echo "$name: ${value[*]}"
    done)
    if [ -e "$OUT/settings.txt" ] && [ "$made_with" != "$(cat "$OUT/settings.txt")" ]; then
        echo "$OUT was made with other settings (see $OUT/settings.txt): give another OUT" >&2
        exit 2
    fi
    echo "$made_with" > "$OUT/settings.txt.partial"
    mv "$OUT/settings.txt.partial" "$OUT/settings.txt"
    trap 'echo; echo "stopped; the same command goes on from here" >&2; exit 130' INT TERM
    SECONDS=0
    experiment
    printf '\n%d:%02d min: %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$REPORT"
}
