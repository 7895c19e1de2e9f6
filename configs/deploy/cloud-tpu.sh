#!/bin/bash
# One run over all hosts of a Cloud TPU slice, from your own machine: start it, and start it again until it is complete.
#
#   bash configs/deploy/cloud-tpu.sh
#
# Every host needs datarax and one shared directory (for instance Filestore, mounted at $SHARED) that holds the config; object
# stores cannot be run directories. This machine must stay on: what runs there goes on without it, but nobody starts it again.
#
# Preemption: a spot slice gets SIGTERM some 30 seconds before it goes. All processes save at one step, or leave after
# save.preemption_seconds, or are cut off: the newest committed snapshot continues exactly, also on a slice of another size.
# A queued resource whose slice was preempted is SUSPENDED for good: with TYPE and VERSION set, this script deletes it, asks for
# a new one and waits; without them it stops and says so.
set -u

TPU=${TPU:-my-slice}
ZONE=${ZONE:-us-central2-b}
SHARED=${SHARED:-/mnt/shared}
CONFIG=${CONFIG:-configs/multihost.toml}
DATARAX=${DATARAX:-datarax} # or its path: a command over ssh has no virtual environment
TYPE=${TYPE:-}              # for instance v4-32
VERSION=${VERSION:-}        # for instance tpu-ubuntu2204-base
SETUP=${SETUP:-true}        # a command that makes a fresh host ready: mounts $SHARED, installs datarax
ATTEMPTS=${ATTEMPTS:-100}
PAUSE=${PAUSE:-30} # seconds

# What each host does. A connection that broke may have left a datarax behind: it saves and ends first. "cluster": JAX learns from
# the TPU's metadata how many hosts there are, which this one is, and who coordinates. gcloud's own code is that of the first
# host that failed, or 1 where gcloud failed itself: so each host prints its code.
REMOTE="$SETUP
cd $SHARED || exit
pkill -TERM -x datarax; while pgrep -x datarax >/dev/null; do sleep 1; done
$DATARAX run $CONFIG --set 'multihost.start=\"cluster\"' --set run.directory=$SHARED/runs/multihost --set save.preemption_seconds=25
echo \"datarax-ended-with \$?\""

state_of() { # queued-resources or tpu-vm, and the field; nothing if there is none, or gcloud cannot say
  gcloud compute tpus "$1" describe "$TPU" --zone "$ZONE" --format "value($2)" 2>/dev/null
}

wait_for_slice() {
  local slice request
  until slice=$(state_of tpu-vm state) && [ "$slice" = READY ]; do
    request=$(state_of queued-resources state.state)
    echo "slice: ${slice:-none}, queued resource: ${request:-none}"
    case "$request" in
      SUSPENDED)
        [ -n "$TYPE" ] && [ -n "$VERSION" ] || return
        gcloud compute tpus queued-resources delete "$TPU" --zone "$ZONE" --force --quiet || return
        gcloud compute tpus queued-resources create "$TPU" --node-id "$TPU" --zone "$ZONE" \
          --accelerator-type "$TYPE" --runtime-version "$VERSION" --spot || return
        ;;
      FAILED) return 1 ;;
    esac
    sleep "$PAUSE"
  done
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for attempt in $(seq "$ATTEMPTS"); do
  if ! wait_for_slice; then
    echo "there is no slice $TPU, and none was made; run this again when there is one"
    exit 75
  fi
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$REMOTE" 2>&1 | tee "$log"
  gcloud_code=${PIPESTATUS[0]}
  codes=$(sed -n 's/.*datarax-ended-with \([0-9][0-9]*\).*/\1/p' "$log" | sort -nu | tr '\n' ' ')
  # Any code but these says what is wrong, whatever the other hosts ended with: they followed it.
  for code in $codes; do
    case "$code" in
      0 | 75 | 134 | 137 | 143) ;;
      *)
        echo "a host ended with code $code, which says what is wrong and would say it again: see the messages above"
        exit "$code"
        ;;
    esac
  done
  if [ "$gcloud_code" = 0 ] && [ "$codes" = "0 " ]; then
    echo "complete"
    exit 0
  fi
  # 75: stopped well, or a host was lost; 134, 137, 143: a process was aborted or killed with it; none: the connection broke.
  echo "attempt $attempt: hosts ended with ${codes:-nothing }(gcloud: $gcloud_code); once more"
  sleep "$PAUSE"
done
exit 75
