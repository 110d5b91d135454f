import { accelerator } from './accelerator.js';
import { Guest, type Accelerator, type GuestOptions } from './guest.js';

export type BootOptions = Omit<GuestOptions, 'accelerator'> & { accelerator?: Accelerator };

/** Starts a guest, with KVM if that works, otherwise with software emulation. */
export async function boot(options: BootOptions = {}): Promise<Guest> {
  return Guest.start({ ...options, accelerator: options.accelerator ?? (await accelerator()) });
}
