/**
 * The mount's end of the attach protocol (native/attach/protocol.h), as native/addon/attach_server.h serves it: who connects
 * with which open file, and what they are answered. It knows nothing of images; src/attach does.
 */
import { fromNative } from './errors.js';
import { addon, type NativeAttachEvent, type NativeAttachServer, type NativeRequestName } from './native.js';

/**
 * In this order for a connection: 'attach' or 'resume'; 'handed over', where that was asked for; an 'answer' to each request;
 * 'release', where its monitor gives the image back; 'closed', after which only 'looked' may come. A connection that never asks for
 * anything is never heard of. A request that is under way at the 'release', or asked for after it, is answered with ESHUTDOWN.
 * 'want' comes at any time before that, when the monitor needs its image's bases anew (giveBases). 'looked' says that all that the connection had sent when look() was called has been reported.
 */
export type AttachEvent = NativeAttachEvent;

/** Every method returns at once. What is said to a connection that has gone is lost: its 'closed' tells. */
export type AttachServer = NativeAttachServer;

/** What a mount asks a monitor for. */
export type RequestName = NativeRequestName;

/** Listens at `path`, in place of whatever socket was there. Waiting for events does not keep the process alive. */
export function startAttachServer(path: string, onEvent: (event: AttachEvent) => void): AttachServer {
  try {
    return new (addon().AttachServer)(path, onEvent);
  } catch (error) {
    throw fromNative(error);
  }
}
