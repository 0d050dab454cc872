#!/usr/bin/env bash
# An MLflow server: ./mlflow/start.sh [port] [directory]. On SQLite, for one machine, unless MLflow's own variables
# say otherwise: MLFLOW_BACKEND_STORE_URI, MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_HOST; with users, if there is a
# MLFLOW_AUTH_CONFIG_PATH (basic_auth.ini).
set -euo pipefail
port=${1:-5000}
store=$(mkdir -p "${2:-.lori/mlflow}" && cd "${2:-.lori/mlflow}" && pwd)
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$store/mlflow.db}  # three slashes and an absolute path
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$store/artifacts}
export MLFLOW_HOST=${MLFLOW_HOST:-127.0.0.1}

export MLFLOW_DISABLE_TELEMETRY=true              # the literal: MLflow does not take 1
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false   # the job runner would take 2.4 GB that nothing here uses

# Tables before the first client: several that make them at once break each other
mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
echo "MLflow: http://$MLFLOW_HOST:$port/#/experiments?workflowType=machine_learning"
echo "Use it: export MLFLOW_TRACKING_URI=http://$MLFLOW_HOST:$port"
# Of experiment 1, the first that a study makes; the description of another one links to its own
for view in $(sed -n 's/^  \(lori-[a-z]*\):$/\1/p' "$(dirname "$0")/views.yaml"); do
  echo "View:   http://$MLFLOW_HOST:$port/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=$view"
done
exec mlflow server --port "$port" --workers 1 ${MLFLOW_AUTH_CONFIG_PATH:+--app-name basic-auth}
