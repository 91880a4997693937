#!/bin/sh
# Create the RayJob of a manifest and wait for its end: 0 where the run succeeded, 1 where it did not.
set -eu
job=$(kubectl create --filename "$1" --output name)
echo "$job"
while :; do
    # an API server that is away for a while ends nothing
    if deployment=$(kubectl get "$job" --output 'jsonpath={.status.jobDeploymentStatus}') &&
        status=$(kubectl get "$job" --output 'jsonpath={.status.jobStatus}'); then
        case "$deployment" in
            Complete | Failed | ValidationFailed) break ;;
        esac
    fi
    sleep "${POLL_S:-30}"
done
echo "$job: $deployment, $status"
[ "$deployment" = Complete ] && [ "$status" = SUCCEEDED ]
