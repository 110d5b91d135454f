/**
 * The mount's side of the attach protocol (native/attach/protocol.h), implemented by
 * native/addon/attach_server.h: which process connects with which open file, and the answers to it.
 * It knows nothing about images; src/attach does.
 */
import { fromNative } from './errors.js';
import {
  addon,
  type NativeAttachEvent,
  type NativeAttachServer,
  type NativeRequestName,
  type StoreFigures,
} from './native.js';

export type { StoreFigures };

/**
 * The order of a connection's events: 'attach' or 'resume'; 'handed over', if that was requested;
 * an 'answer' to each request; 'release', when its monitor gives the image back; 'closed', after
 * which only 'looked' may follow. A connection that never sends its first message has no events. A
 * request that is in progress at the 'release', or made after it, is answered with ESHUTDOWN.
 * Before that, 'want' may come at any time, when the monitor needs its image's bases (giveBases),
 * and after the request 'may fetch' also 'fetch', when it needs a block that is remote (fetched).
 * 'opened' follows share(), and may take as long as a disk does.
 * 'looked' says that everything that the connection had sent before look() was called has been
 * reported.
 */
export type AttachEvent = NativeAttachEvent;

/**
 * Every method returns at once. Commands for a connection that is gone are ignored: its 'closed'
 * event says that it is gone.
 */
export type AttachServer = NativeAttachServer;

/** The requests of a mount to a monitor. */
export type RequestName = NativeRequestName;

/**
 * Listens at `path`, and replaces a socket that is there. Waiting for events does not keep the
 * process alive. `cleanStore`: the budget of the clean store in bytes; 0: there is none.
 */
export function startAttachServer(
  path: string,
  cleanStore: number,
  onEvent: (event: AttachEvent) => void,
): AttachServer {
  try {
    return new (addon().AttachServer)(path, cleanStore, onEvent);
  } catch (error) {
    throw fromNative(error);
  }
}
