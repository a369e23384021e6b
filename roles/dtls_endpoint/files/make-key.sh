# Makes a file with a random key of 32 bytes: $1 its name, $2 what stands before the key, $3 its owner.
umask 077
draft=$(dirname -- "$1")/.make-key.$$
trap 'rm -f -- "$draft"' EXIT
# echo, not a program: the key stands in no process list.
echo "$2$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')" >"$draft" || exit 1
chown -- "$3:$3" "$draft" && mv -f -- "$draft" "$1"
