#!/bin/sh
# Start one role of a container, in place of this shell, so that signals reach it.
#
# Usage: start ROLE [ARGUMENT ...]
#   driver    a command of mirrorspark, such as `driver train --recipe flights --master spark://master:7077`
#   master    Spark's master
#   worker    a worker of Spark, of the master at SPARK_MASTER_URL
#   server    mirrorspark serve on port 8080, such as `server --model models:/late-flights@champion`
#   tracking  MLflow's server on port 5000, with what MLFLOW_* variables say
#
# A secret NAME may be given as NAME_FILE, the file that has it.
set -eu

fail() {
    echo "start: $*" >&2
    exit 2
}

for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MIRRORSPARK_SERVE_TOKEN PGPASSWORD; do
    eval "given=\${${name}_FILE+given} file=\${${name}_FILE:-}"
    if [ -n "$given" ]; then
        [ -n "$file" ] || fail "${name}_FILE is set and blank; name the file that has the secret, or unset it"
        [ -r "$file" ] || fail "${name}_FILE names $file, which cannot be read; mount the secret there"
        value=$(cat "$file")
        [ -n "$(printf %s "$value" | tr -d '[:space:]')" ] || fail "${name}_FILE names $file, which is blank"
        export "$name=$value"
        unset "${name}_FILE"
    fi
done

needs_java() {
    command -v java >/dev/null 2>&1 || [ -x "${JAVA_HOME:-}/bin/java" ] ||
        fail "the role $role needs Java, which this image lacks; build it with --target spark"
}

# MLflow writes into a bucket, and does not make it.
make_bucket() {
    python - "${1#s3://}" <<'PYTHON'
import os, sys, boto3
store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
bucket = sys.argv[1].partition("/")[0]
if bucket not in {one["Name"] for one in store.list_buckets()["Buckets"]}:
    store.create_bucket(Bucket=bucket)
PYTHON
}

[ $# -gt 0 ] || fail "there is no role; give driver, master, worker, server or tracking"
role=$1
shift
case $role in
    driver)
        needs_java
        exec mirrorspark "$@"
        ;;
    master)
        needs_java
        exec spark-class org.apache.spark.deploy.master.Master --host "$(hostname)" --port 7077 --webui-port 8080 "$@"
        ;;
    worker)
        needs_java
        exec spark-class org.apache.spark.deploy.worker.Worker --work-dir /tmp/spark-work --webui-port 8081 "$@" \
            "${SPARK_MASTER_URL:-spark://master:7077}"
        ;;
    server)
        exec mirrorspark serve --host 0.0.0.0 --port 8080 "$@"
        ;;
    tracking)
        [ -z "${MLFLOW_S3_ENDPOINT_URL:-}" ] || make_bucket "${MLFLOW_ARTIFACTS_DESTINATION:-}"
        exec mlflow server --host 0.0.0.0 --port 5000 "$@"
        ;;
    *)
        fail "role '$role' is unknown; give driver, master, worker, server or tracking"
        ;;
esac
