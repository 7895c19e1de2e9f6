#!/bin/bash
# One run over all hosts of a Cloud TPU slice, from your own machine: start it, and start it again until it is complete.
#
#   bash configs/deploy/cloud-tpu.sh
#
# Every host needs the repository's install and one shared directory (for instance Filestore, mounted at $SHARED): object stores
# are not supported as run directories yet. A spot slice gets SIGTERM about 30 seconds before it goes: keep saves frequent, and
# save.preemption_seconds below that. When a slice is gone, make it again (queued resources do) and run this again.
set -u

TPU=${TPU:-my-slice}
ZONE=${ZONE:-us-central2-b}
SHARED=${SHARED:-/mnt/shared}
CONFIG=${CONFIG:-configs/multihost.toml}
ATTEMPTS=${ATTEMPTS:-100}

# "cluster": JAX learns from the TPU's metadata how many hosts there are, which this one is, and who coordinates.
COMMAND="cd $SHARED && exec datarax run $CONFIG --set 'multihost.start=\"cluster\"' --set run.directory=$SHARED/runs/multihost --set save.preemption_seconds=25"

for attempt in $(seq "$ATTEMPTS"); do
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$COMMAND"
  code=$?
  case "$code" in
    0)
      echo "complete"
      exit 0
      ;;
    # 75: stopped well, or a host was lost; 134, 137: a process was aborted or killed with it; 255: the connection is gone.
    75 | 134 | 137 | 255) echo "attempt $attempt ended with $code: once more" ;;
    *)
      echo "code $code says what is wrong and would say it again: see the messages above"
      exit "$code"
      ;;
  esac
done
exit 75
