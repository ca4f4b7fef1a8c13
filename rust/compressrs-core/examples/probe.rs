use compressrs_core::sparse::*;
use compressrs_core::distill::*;
use compressrs_core::prune::*;
use std::time::Instant;
fn time(name:&str, reps:usize, mut f: impl FnMut()){ let mut t=vec![]; for _ in 0..reps{ let s=Instant::now(); f(); t.push(s.elapsed().as_secs_f64());} t.sort_by(f64::total_cmp); println!("{name}: {:.3} ms", t[t.len()/2]*1e3);}
fn main(){
  for th in [1,2] { compressrs_core::parallel::set_num_threads(th).unwrap(); println!("threads {th}");
  let n=4096; let mut s=12345u64; let mut r=||{s^=s<<13;s^=s>>7;s^=s<<17;s};
  let w:Vec<f32>=(0..n*n).map(|_| if r()%10==0 {1.0+(r()%100) as f32} else {0.0}).collect();
  let off=row_offsets(&w,n,n,0.0); let nnz=off[n]; let mut data=vec![0f32;nnz]; let mut idx=vec![0i32;nnz]; fill(&w,n,0.0,&off,&mut data,&mut idx);
  time("from_dense",9,||{let off=row_offsets(&w,n,n,0.0); fill(&w,n,0.0,&off,&mut data,&mut idx);});
  let ip:Vec<i32>=off.iter().map(|&x|x as i32).collect();
  time("check",9,||{std::hint::black_box(Csr::new(&data,&idx,&ip,n).unwrap());});
  let a=Csr::new(&data,&idx,&ip,n).unwrap();
  for c in [1,8,64]{ let x=vec![1f32;n*c]; let mut y=vec![0f32;n*c];
   time(&format!("A@X {c}"),21,||matmul(a,Dense::row_major(&x,n,c),DenseMut::row_major(&mut y,n,c)));
   time(&format!("X@A.T {c}"),21,||matmul(a,Dense::row_major(&x,c,n).transposed(),DenseMut::row_major(&mut y,c,n).transposed()));
   time(&format!("A.T@X {c}"),21,||matmul_transposed(a,Dense::row_major(&x,n,c),DenseMut::row_major(&mut y,n,c)));
   let mut out=vec![0f32;nnz];
   time(&format!("sddmm {c}"),21,||sddmm(a,Dense::row_major(&x,c,n).transposed(),Dense::row_major(&x,c,n),&mut out));
  }
  let (b,c)=(256,32000); let z:Vec<f32>=(0..b*c).map(|i| ((i*7919)%1000) as f32*0.01).collect(); let t:Vec<f32>=(0..b*c).map(|i| ((i*104729)%1000) as f32*0.01).collect(); let mut g=vec![0f32;b*c]; let l=vec![5usize;b];
  time("softmax",11,||softmax(&z,c,4.0,&mut g));
  time("kd soft",11,||{kd_loss(KdLoss{student:&z,teacher:&t,labels:None,classes:c,temperature:4.0,alpha:1.0},&mut g);});
  time("kd both",11,||{kd_loss(KdLoss{student:&z,teacher:&t,labels:Some(&l),classes:c,temperature:4.0,alpha:0.5},&mut g);});
  time("kd 4096x10",11,||{kd_loss(KdLoss{student:&z[..40960],teacher:&t[..40960],labels:None,classes:10,temperature:4.0,alpha:1.0},&mut g[..40960]);});
  let w:Vec<f32>=(0..50_000_000u32).map(|i| (i.wrapping_mul(2654435761) as f32/4e9).powi(2)-0.5).collect();
  time("rank 50M",5,||{std::hint::black_box(rank(&[&w],45_000_000));});
  time("nan 50M",5,||{std::hint::black_box(find_nan(&[&w]));});
  }
}
