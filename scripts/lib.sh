# SPDX-License-Identifier: Apache-2.0
# Helpers that the scripts in this folder source; not a program of its own.
# shellcheck shell=bash
# with_lock runs its function in a subshell on purpose, and $stage is meant to exist only there.
# shellcheck disable=SC2030,SC2031

# Everything made by these scripts is kept here and can be deleted at any time.
BULKHEAD_CACHE=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
[[ $BULKHEAD_CACHE == /* ]] || BULKHEAD_CACHE=$PWD/$BULKHEAD_CACHE
export BULKHEAD_CACHE

# depmod, mke2fs and the like live in sbin, which an ordinary user's PATH leaves out on Debian.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

progress() { printf 'bulkhead: %s\n' "$*" >&2; }

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

usage_error() {
  printf '%s: %s (see %s --help)\n' "${0##*/}" "$*" "${0##*/}" >&2
  exit 2
}

# The comment at the top of the calling script is its help text.
show_help() { sed -n '2,/^[^#]/{/^# \(SPDX\|shellcheck\)/d;s/^# \{0,1\}//p}' "$0"; }

# need GROUP COMMAND...: names the cure when a program is missing.
need() {
  local group=$1 command
  shift
  for command; do
    command -v "$command" >/dev/null || die "$command is not installed; run scripts/deps $group"
  done
}

# with_lock NAME FUNCTION [ARG...]: runs FUNCTION in a subshell while holding the cache lock NAME, with $stage set
# to an empty folder inside the cache's file system. Whatever is not moved out of $stage is removed, so a run that
# is interrupted leaves nothing half made; what a killed run left is removed by the next holder of the lock.
with_lock() {
  local name=$1
  shift
  mkdir -p "$BULKHEAD_CACHE/lock" "$BULKHEAD_CACHE/stage" || die "cannot create $BULKHEAD_CACHE"
  (
    flock -n 9 || {
      progress "waiting for another run that is making $name"
      flock 9
    }
    stage=$BULKHEAD_CACHE/stage/$name
    remove_tree "$stage"
    mkdir "$stage" || die "cannot create $stage"
    trap 'remove_tree "$stage"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    "$@"
  ) 9>"$BULKHEAD_CACHE/lock/$name"
}

# Folders made by package tools may lack the write bit that removing their contents needs.
remove_tree() {
  [[ -e $1 || -L $1 ]] || return 0
  rm -rf -- "$1" 2>/dev/null || { chmod -R u+rwX -- "$1" && rm -rf -- "$1"; }
}

# publish FROM TO: makes the finished FROM appear as TO in one step, in place of any older TO.
publish() {
  sync -f "$1"
  if [[ -d $2 && ! -L $2 ]]; then
    mv -T -- "$2" "$stage/replaced"
  fi
  mv -T -- "$1" "$2"
}

# apt-get and apt-cache with the package lists of this machine, or, once apt_refresh has been called, with lists of
# our own made from the same sources: an ordinary user can refresh those.
apt_options=()
apt_refresh() {
  local state=$BULKHEAD_CACHE/apt
  mkdir -p "$state/lists/partial" "$state/archives/partial"
  apt_options=(-o "Dir::State::Lists=$state/lists" -o "Dir::Cache=$state" -o APT::Sandbox::User=root)
  progress "refreshing the package lists (into $state)"
  flock "$state" apt-get "${apt_options[@]}" -qq update </dev/null >&2 ||
    die "apt-get update failed; check the sources in /etc/apt and the network"
}

# download_package NAME FOLDER: fetches the .deb of NAME's candidate version.
download_package() {
  (
    cd "$2" || exit
    # Root's apt drops to the user _apt for downloads and warns when that user cannot write here.
    apt-get "${apt_options[@]}" -qq -o APT::Sandbox::User=root download "$1" </dev/null >&2
  )
}
