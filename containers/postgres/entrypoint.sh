#!/bin/sh
# Entry point of the throwaway PostgreSQL image: creates the cluster at the first start, then becomes the server.
# POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_PASSWORD_FILE, POSTGRES_DB, POSTGRES_INITDB_ARGS and PGDATA have the same
# meaning as in the official image; arguments that begin with a dash are options of the server.
set -eu

case "${1:-postgres}" in
    -*) set -- postgres "$@" ;;
    postgres) [ $# -gt 0 ] || set -- postgres ;;
    *) exec "$@" ;;
esac

if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
    # Read before the change of user: a secret's file may belong to root.
    POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    export POSTGRES_PASSWORD
    unset POSTGRES_PASSWORD_FILE
fi

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /run/postgresql
    chown postgres:postgres "$PGDATA" /run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "${POSTGRES_PASSWORD:-}" ]; then
        echo "POSTGRES_PASSWORD is not set; pass it or POSTGRES_PASSWORD_FILE to the container." >&2
        exit 1
    fi
    password_file=$(mktemp)
    trap 'rm -f "$password_file"' EXIT
    printf '%s\n' "$POSTGRES_PASSWORD" >"$password_file"
    # Unquoted on purpose: several options, separated by spaces.
    # shellcheck disable=SC2086
    initdb --username="$user" --pwfile="$password_file" --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS:-}
    rm -f "$password_file"
    trap - EXIT
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    if [ "$database" != postgres ]; then
        # Single-user mode: does not start the server twice, and accepts no connections before the database exists.
        printf 'CREATE DATABASE "%s";\n' "$(printf '%s' "$database" | sed 's/"/""/g')" |
            postgres --single -c fsync=off -D "$PGDATA" postgres >/dev/null
    fi
fi

unset POSTGRES_PASSWORD
shift
exec postgres -c listen_addresses='*' "$@"
