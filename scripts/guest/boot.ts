import { accelerator } from './accelerator.js';
import { Guest, type Accelerator, type GuestOptions } from './guest.js';

export type BootOptions = Omit<GuestOptions, 'accelerator'> & { accelerator?: Accelerator };

/** Starts a guest, under KVM where that works and under software emulation otherwise. */
export async function boot(options: BootOptions = {}): Promise<Guest> {
  return Guest.start({ ...options, accelerator: options.accelerator ?? (await accelerator()) });
}
