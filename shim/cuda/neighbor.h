/* neighbor.h - whether another library in the process manages device memory, too. Threads: any. */
#ifndef CWS_SHIM_CUDA_NEIGHBOR_H
#define CWS_SHIM_CUDA_NEIGHBOR_H

/* Writes a line, once a process, if comfy-aimdo's library (ComfyUI's dynamic VRAM) is loaded by now. */
void cws_cuda_note_neighbor(void);

#endif
