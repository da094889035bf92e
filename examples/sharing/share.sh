#!/bin/bash
# Two teams and a cache between them, played in FOLDER: a publisher with a teacher, a consumer with neither its weights
# nor its code.
#
#   ./share.sh FOLDER                                 the DVC remote is a folder
#   ./share.sh FOLDER s3://BUCKET/PREFIX [ENDPOINT]   it is a bucket; ENDPOINT for an S3 that is not Amazon's
#
# S3 takes `pip install dvc-s3`, and credentials where AWS's tools look for them.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ $# -lt 1 ] || [ -e "$1" ]; then
    echo "usage: $0 FOLDER [s3://BUCKET/PREFIX [ENDPOINT]], where FOLDER is one to be made" >&2
    exit 2
fi
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
remote="${2:-$folder/remote}"
endpoint="${3:-}"
if [ -n "$endpoint" ]; then export FSSPEC_S3_ENDPOINT_URL="$endpoint"; fi

repository() { # a git and DVC repository with the files of an example
    cp -R "$here/$1" "$folder/$1"
    cd "$folder/$1"
    git init --quiet
    dvc init --quiet
    cat "$here/dvc-config" >> .dvc/config
}

remember() { # where dvc push sends things
    dvc remote add --quiet --default store "$1"
    if [ -n "$endpoint" ]; then dvc remote modify --quiet store endpointurl "$endpoint"; fi
}

commit() {
    git add --all
    git -c user.name="$1" -c user.email="$1@example.org" commit --quiet --message "$2"
}

echo "== The publisher runs the teacher once, and pushes what it said =="
repository publisher
remember "$remote"
dvc repro
commit publisher "A teacher, and its cache"
dvc push

echo
echo "== The consumer imports the cache, and trains a student of its own =="
repository consumer
remember "$remote-consumer" # for its own results
mkdir caches
dvc import --quiet "$folder/publisher" caches/digits --out caches/digits
softlabels cache verify caches/digits
commit consumer "The publisher's cache, imported"
if [ -e house_teacher.py ] || [ -n "$(find . -name '*.safetensors')" ]; then
    echo "the teacher should not be here" >&2
    exit 1
fi
dvc repro --pull --allow-missing
commit consumer "A student"
dvc push
dvc metrics show

echo
echo "== A third party has neither DVC nor a repository: the publisher hands it a reference file =="
cd "$folder/publisher"
softlabels cache refs caches/digits --out "$folder/digits.refs.json" --check
mkdir "$folder/third"
cd "$folder/third"
softlabels train --cache ../digits.refs.json --student mlp-16 --epochs 12 --lr 0.01 --threads 1 --out runs/student
