#!/bin/sh
# Create the RayJob of a manifest and wait for its end: 0 where the run succeeded, 1 where it did not or is gone.
# The RayJob belongs to the Job OWNER_NAME, whose activeDeadlineSeconds bounds the wait.
set -eu
owner="{apiVersion: batch/v1, kind: Job, name: \"$OWNER_NAME\", uid: \"$OWNER_UID\"}"
job=$(sed "s|^metadata:|&\\n  ownerReferences: [$owner]|" "$1" | kubectl create --filename - --output name)
echo "$job"
while :; do
    # an API server that is away for a while ends nothing
    if state=$(kubectl get "$job" --ignore-not-found --output 'jsonpath={.status.jobDeploymentStatus}/{.status.jobStatus}')
    then
        case "$state" in
            "") echo "$job: not there any more" >&2 && exit 1 ;;
            Complete/* | Failed/* | ValidationFailed/*) break ;;
        esac
    fi
    sleep "${POLL_S:-30}"
done
echo "$job: $state"
[ "$state" = Complete/SUCCEEDED ]
