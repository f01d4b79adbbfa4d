#!/usr/bin/env bash
# Pins the images of compose.yaml and deploy/Dockerfile by digest, or brings the digests up to date: a tag can be moved
# to another image, a digest cannot. Run it where the images' registry can be reached, and commit what it changes.
#
#   deploy/pin-images.sh            needs docker with buildx
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=(compose.yaml deploy/Dockerfile)
# Lines such as `image: redis:7@sha256:...` and `FROM debian:bookworm-slim`. An image of a stage has no tag, and what is
# built here has a variable.
mapfile -t images < <(sed -nE 's/^(    image:|FROM) ([a-z0-9./-]+:[A-Za-z0-9._-]+)(@sha256:[0-9a-f]{64})?( .*)?$/\2/p' \
    "${files[@]}" | sort -u)
[ "${#images[@]}" -gt 0 ] || { echo "no image with a tag in ${files[*]}" >&2; exit 1; }

for image in "${images[@]}"; do
    digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')
    [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$image: no digest, but '$digest'" >&2; exit 1; }
    sed -i -E "s#^(    image:|FROM) ${image//./\\.}(@sha256:[0-9a-f]{64})?( .*)?\$#\1 $image@$digest\3#" "${files[@]}"
    echo "$image@$digest"
done
