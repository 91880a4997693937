#!/bin/sh
# Create the RayJob of a manifest and wait for its end: 0 where the run succeeded, 1 where it did not.
set -eu
job=$(kubectl create --filename "$1" --output name)
echo "$job"
while :; do
    deployment=$(kubectl get "$job" --output 'jsonpath={.status.jobDeploymentStatus}')
    status=$(kubectl get "$job" --output 'jsonpath={.status.jobStatus}')
    case "$deployment" in
        Complete | Failed) break ;;
    esac
    sleep "${POLL_S:-30}"
done
echo "$job: $deployment, $status"
[ "$deployment" = Complete ] && [ "$status" = SUCCEEDED ]
