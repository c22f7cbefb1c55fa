#!/bin/bash
# Builds a throwaway PostgreSQL image from Debian's packages, without an image registry.
#
#     containers/postgres/build.sh [--force] [TAG]          default: flux-memory/postgres:15
#
# Keeps an image that was already built from this recipe; --force rebuilds it. Needs root, a running Docker engine and
# debootstrap. DEBOOTSTRAP_MIRROR names another mirror of Debian's packages.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
force=
if [ "${1:-}" = --force ]; then
    force=yes
    shift
fi
tag=${1:-flux-memory/postgres:15}
suite=bookworm # Debian 12: PostgreSQL 15
bin=/usr/lib/postgresql/15/bin

fail() {
    echo "containers/postgres/build.sh: $*" >&2
    exit 1
}

docker version >/dev/null 2>&1 || fail "no Docker engine answers; start one (on a Debian machine, as root: containers/engine.sh)"
recipe=$(cat "$here/build.sh" "$here/entrypoint.sh" | sha256sum | cut -c1-16)
built=$(docker image inspect --format '{{index .Config.Labels "flux-memory.recipe"}}' "$tag" 2>/dev/null || true)
if [ -z "$force" ] && [ "$built" = "$recipe" ]; then
    echo "$tag is up to date"
    exit 0
fi
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
[ "$(id -u)" = 0 ] || fail "debootstrap needs root"

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root

debootstrap --variant=minbase --include=postgresql-15 "$suite" "$root" ${DEBOOTSTRAP_MIRROR:+"$DEBOOTSTRAP_MIRROR"} \
    >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; fail "debootstrap failed"; }

# Remove the package's cluster; the entry point creates one at the first start, with the password given then.
rm -rf "$root"/var/lib/postgresql/15 "$root"/etc/postgresql/15 \
    "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/* "$root"/var/log/*
install -m 755 "$here/entrypoint.sh" "$root/usr/local/bin/docker-entrypoint.sh"

tar --numeric-owner -C "$root" -c . | docker import \
    --change "ENV PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    --change "ENV LANG=C.UTF-8" \
    --change "ENV PG_MAJOR=15" \
    --change "ENV PGDATA=/var/lib/postgresql/data" \
    --change 'ENTRYPOINT ["docker-entrypoint.sh"]' \
    --change 'CMD ["postgres"]' \
    --change "EXPOSE 5432" \
    --change "VOLUME /var/lib/postgresql/data" \
    --change "LABEL flux-memory.recipe=$recipe" \
    - "$tag" >/dev/null
echo "built $tag"
