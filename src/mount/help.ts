/** The text of `.pcow/help`. docs/control-files.md says the same at length. */
export const HELP = `Control files of a Pcow mount. Reading one says something, writing one command to it does something. The
write returns when it is done; if it fails, the file says why where it is read through the same descriptor, and
"status" does (lastError).

  NAME                            the image NAME.pcow as a plain file of its full size
  .pcow/NAME/status               JSON: size, chain, disk use, who has it open, state, last error
  .pcow/NAME/snapshots            JSON lines: its snapshots, oldest first
  .pcow/NAME/at/SNAPSHOT          a snapshot as a read-only file
  .pcow/NAME/snapshot             write SNAPSHOT: take a snapshot, also while it is in use
  .pcow/NAME/rollback             write SNAPSHOT: back to it; what was written since is lost (nobody may have NAME open)
  .pcow/NAME/rename               write SNAPSHOT NEWNAME: give that snapshot another name (nobody may have its file open)
  .pcow/NAME/delete               write SNAPSHOT: delete that snapshot
  .pcow/NAME/clone                write NEWIMAGE or NEWIMAGE SNAPSHOT: a new image on this one
  .pcow/NAME/remove               write NAME: delete the image with all its snapshots (nobody may have it open)
  .pcow/NAME/resize               write BYTES: make it larger; BYTES shrink: smaller (nobody may have NAME open)
  .pcow/NAME/rebase               write IMAGE or IMAGE SNAPSHOT: stand on that, with the content kept
  .pcow/NAME/flatten              write now: copy everything from the base, and drop it
  .pcow/NAME/commit               write SNAPSHOT: move what was written into the base, as a snapshot there
  .pcow/NAME/compact              write now: give back blocks of zeros
  .pcow/NAME/checksums            write add or remove: checksums of what snapshots hold ("pcow scrub" verifies them)
  .pcow/NAME/cancel               write COMMAND (delete, rebase, flatten, commit, compact, checksums): stop it; "status" tells how far it is
  .pcow/NAME/metrics              Prometheus text
  .pcow/snapshot                  write "SNAPSHOT NAME NAME ...": one snapshot of several images at one moment
  .pcow/status, .pcow/metrics     the same as above, of the mount and of all its images

Examples
  echo before-upgrade > .pcow/vm1/snapshot
  echo before-upgrade > .pcow/vm1/rollback
  echo vm2 before-upgrade > .pcow/vm1/clone
  echo nightly vm1 vm2 > .pcow/snapshot
  cp --sparse=always .pcow/vm1/at/nightly /backup/vm1.raw

mv NAME NEWNAME renames an image, mv .pcow/NAME/at/SNAPSHOT .pcow/NAME/at/NEWNAME a snapshot. rm NAME deletes an image only where it holds
nothing: "pcow rm" deletes any. New images: pcow create, in the image directory.
`;
