/** The text of `.pcow/help`. docs/control-files.md has the details. */
export const HELP = `Control files of a Pcow mount. Reading a control file shows information; writing a command to it runs the command.
The write returns when the command is done. If it fails, the reason can be read through the same descriptor, and in
"status" (lastError).

  NAME                            the image NAME.pcow as a plain file of its full size
  .pcow/NAME/status               JSON: size, chain, disk use, processes that have it open, state, last error
  .pcow/NAME/snapshots            JSON lines: its snapshots, oldest first
  .pcow/NAME/at/SNAPSHOT          a snapshot as a read-only file
  .pcow/NAME/snapshot             write SNAPSHOT: take a snapshot, also while the image is in use
  .pcow/NAME/rollback             write SNAPSHOT: go back to it; what was written since is lost (no process may have NAME open)
  .pcow/NAME/rename               write SNAPSHOT NEWNAME: rename that snapshot (no process may have its file open)
  .pcow/NAME/delete               write SNAPSHOT: delete that snapshot
  .pcow/NAME/clone                write NEWIMAGE or NEWIMAGE SNAPSHOT: make a new image that stands on this one
  .pcow/NAME/remove               write NAME: delete the image with all its snapshots (no process may have it open)
  .pcow/NAME/resize               write BYTES: make it larger; BYTES shrink: smaller (no process may have NAME open)
  .pcow/NAME/rebase               write IMAGE or IMAGE SNAPSHOT: stand on that image; the content stays
  .pcow/NAME/flatten              write now: copy everything from the base, and stand on no base
  .pcow/NAME/commit               write SNAPSHOT: move what the image has written into the base, as a snapshot there
  .pcow/NAME/compact              write now: give back blocks that hold only zeros
  .pcow/NAME/trace                what readers of a lazy image have needed, as JSON
  .pcow/NAME/prefetch             write now: fetch everything that a lazy image lacks
  .pcow/NAME/checksums            write add or remove: checksums of snapshots ("pcow scrub" verifies them)
  .pcow/NAME/cancel               write COMMAND (delete, rebase, flatten, commit, compact, checksums, prefetch): stop it; "status" has its progress
  .pcow/NAME/metrics              Prometheus text
  .pcow/snapshot                  write "SNAPSHOT NAME NAME ...": one snapshot of several images at one moment
  .pcow/status, .pcow/metrics     the same as above, for the mount and all its images

Examples
  echo before-upgrade > .pcow/vm1/snapshot
  echo before-upgrade > .pcow/vm1/rollback
  echo vm2 before-upgrade > .pcow/vm1/clone
  echo nightly vm1 vm2 > .pcow/snapshot
  cp --sparse=always .pcow/vm1/at/nightly /backup/vm1.raw

mv NAME NEWNAME renames an image; mv .pcow/NAME/at/SNAPSHOT .pcow/NAME/at/NEWNAME renames a snapshot. rm NAME deletes an image
only if it holds nothing; "pcow rm" deletes any image. To make a new image, use pcow create in the image directory.
`;
